"""Training held by moments is its formula, and keeps what earlier experts' inputs gave while it learns."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from test_finetuning import ROWS, SETTINGS, weights

from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.finetuning import finetune
from recall.holding import HeldOutputs, Hold
from recall.loading import load_model, load_tokenizer
from recall.moments import read_moments, second_moments
from recall.settings import LoraSettings

HELD = [f"say {word} once more" for word in ("one", "two", "three", "four", "five", "six")]


def read(folder):
    return load_model(folder, torch.float32), load_tokenizer(folder)


@pytest.fixture
def leave(tmp_path):
    """Write what an expert leaves behind of some prompts."""

    def moments(folder, name, weighting="uniform", prompts=HELD):
        found = second_moments(*read(folder), prompts, batch_size=4, max_tokens=64, weighting=weighting)
        found.save(tmp_path / name)
        return tmp_path / name

    return moments


def random_adapter(folder, target_modules="all-linear", seed=1):
    """A model with a LoRA adapter whose factors are not zero, and the layers that it changes."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=target_modules, init_lora_weights=False)
    model = get_peft_model(read(folder)[0], config)
    return model, {f"{n}.weight": p for n, p in model.get_base_model().named_modules() if isinstance(p, LoraLayer)}


@pytest.mark.parametrize("weighting", ["uniform", "response"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_penalty_and_its_gradient_are_those_of_the_dense_formula(
    family, weighting, tiny_model_folder, tiny_gpt2_folder, leave
):
    folder = {"llama": tiny_model_folder, "gpt2": tiny_gpt2_folder}[family]
    files = (leave(folder, "one", weighting, HELD[:3]), leave(folder, "two", weighting, HELD[3:]))
    model, layers = random_adapter(folder)
    dense = torch.zeros((), device=model.device)
    for name, layer in layers.items():
        change, weight = layer.get_delta_weight("default"), layer.weight.detach()
        if layer.fan_in_fan_out:
            change, weight = change.T, weight.T
        gram = sum(read_moments(file)[name] for file in files).to(change.device)
        trace = torch.trace(change @ gram @ change.T)
        shared = read_moments(files[0]).shared
        sharing = sum(other == shared[name] for other in shared.values())
        of_response = trace / (len(change) * sharing)
        dense = dense + (of_response if weighting == "response" else 2 * trace / torch.trace(weight @ gram @ weight.T))
    found = HeldOutputs(model, Hold(files, 3.0))()
    torch.testing.assert_close(found, 3.0 / 2 * dense, rtol=1e-4, atol=1e-6)
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(factors) == 2 * len(layers)
    for gradient, wanted in zip(
        torch.autograd.grad(found, factors), torch.autograd.grad(3.0 / 2 * dense, factors), strict=True
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


def test_of_uniform_moments_it_is_the_change_of_a_map_s_output_relative_to_that_output(tiny_model_folder, leave):
    """Measured at the map itself, on the very texts that the moments are of."""
    model, layers = random_adapter(tiny_model_folder, ["layers.1.mlp.down_proj"])
    (layer,) = layers.values()
    seen = []
    layer.base_layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    tokenizer = load_tokenizer(tiny_model_folder)
    with torch.no_grad(), model.disable_adapter():
        for text in HELD:
            model(**tokenizer(text, return_tensors="pt").to(model.device))
    changed = sum((inputs @ layer.get_delta_weight("default").T).square().sum() for inputs, _ in seen)
    wanted = changed / sum(output.square().sum() for _, output in seen)
    found = HeldOutputs(model, Hold((leave(tiny_model_folder, "held"),), 2.0))()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("target", ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"])
def test_of_moments_weighted_by_response_it_is_how_far_the_hidden_state_of_an_answer_moves(
    target, tiny_model_folder, leave
):
    """Of every map alike, within what the derivation leaves out; measured on the very texts that the moments are of."""
    found, wanted = 0.0, 0.0
    tokenizer, file = load_tokenizer(tiny_model_folder), leave(tiny_model_folder, "held", "response")
    for seed in range(6):
        model, layers = random_adapter(tiny_model_folder, [f"layers.1.{target}"], seed)
        (layer,) = layers.values()
        layer.scaling["default"] = 1e-3  # small enough for a first order
        found += HeldOutputs(model, Hold((file,), 2.0))().item()
        for text in HELD:
            inputs = tokenizer(text, return_tensors="pt").to(model.device)
            with torch.no_grad():
                after = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
                with model.disable_adapter():
                    before = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
            wanted += float((after - before).square().sum() / before.square().sum()) / len(HELD)
    assert 1 / 4 < found / wanted < 4


def test_a_map_that_gives_out_nothing_but_zeros_is_let_go(tiny_model_folder, leave):
    model, layers = random_adapter(tiny_model_folder)
    layers["model.layers.1.mlp.down_proj.weight"].base_layer.weight.data.zero_()
    file = leave(tiny_model_folder, "held")
    assert torch.isfinite(HeldOutputs(model, Hold((file,), 1.0))())


@pytest.fixture
def run(tiny_model_folder, tmp_path):
    """Fine-tune into a folder of that name."""

    def training(name, keep=None, **changes):
        settings = SETTINGS.model_copy(update=changes)
        work = tmp_path / f"{name}_work"
        return finetune(Checkpoint(tiny_model_folder), ROWS, settings, tmp_path / name, work, keep=keep)

    return training


def test_strength_0_gives_the_bytes_of_plain_fine_tuning(run, leave, tiny_model_folder, tmp_path):
    file = leave(tiny_model_folder, "held")
    plain, off, on = run("plain"), run("off", Hold((file,), 0.0)), run("on", Hold((file,), 1.0))
    assert weights(tmp_path / "off") == weights(tmp_path / "plain")
    assert weights(tmp_path / "on") != weights(tmp_path / "plain")
    assert off.losses == plain.losses
    assert on.losses[0] == plain.losses[0], "LoRA starts at the model that is to be kept"


@pytest.mark.parametrize("weighting", ["uniform", "response"])
def test_the_texts_that_it_is_held_by_are_read_as_before_and_the_new_rows_are_learned(
    weighting, run, leave, tiny_model_folder, tmp_path
):
    changes = {"epochs": 10, "gradient_accumulation": 1, "lora": LoraSettings(r=4)}
    free = run("free", **changes)
    held = run("held", Hold((leave(tiny_model_folder, "moments", weighting),), 100.0), **changes)
    assert moved(tiny_model_folder, tmp_path / "held") < 0.5 * moved(tiny_model_folder, tmp_path / "free")
    assert held.losses[-1] < 0.6 * free.losses[0]


def moved(folder, adapter):
    """How far the last token's final hidden state of the held texts is from where it was."""
    model, tokenizer = read(folder)
    tuned = PeftModel.from_pretrained(read(folder)[0], adapter)

    def states(network):
        with torch.no_grad():
            found = [
                network(**tokenizer(text, return_tensors="pt").to(network.device), output_hidden_states=True)
                for text in HELD
            ]
        return torch.stack([one.hidden_states[-1][0, -1] for one in found])

    return (states(tuned) - states(model)).norm()


def test_moments_of_two_weightings_and_of_other_maps_are_refused(tiny_model_folder, tiny_gpt2_folder, leave):
    model, _ = random_adapter(tiny_model_folder)
    uniform, response = leave(tiny_model_folder, "one"), leave(tiny_model_folder, "two", "response")
    with pytest.raises(BadInput, match=r"two has moments weighted response and .*one weighted uniform"):
        HeldOutputs(model, Hold((uniform, response), 1.0))
    with pytest.raises(BadInput, match=r"three has no moments for the \d+ inputs of model\.layers\.0"):
        HeldOutputs(model, Hold((leave(tiny_gpt2_folder, "three"),), 1.0))
    with_embeddings, _ = random_adapter(tiny_model_folder, ["embed_tokens", "q_proj"])
    with pytest.raises(BadInput, match=r"inputs of model\.embed_tokens\.weight; .*linear maps of its blocks"):
        HeldOutputs(with_embeddings, Hold((uniform,), 1.0))


def test_the_digest_covers_what_changes_the_result_and_not_where_it_lies(tiny_model_folder, leave):
    here, there = leave(tiny_model_folder, "here"), leave(tiny_model_folder, "there")
    other = leave(tiny_model_folder, "other", prompts=HELD[:2])
    first = Hold((here, other), 1.0).digest()
    assert first == Hold((there, other), 1.0).digest()
    assert (
        len({first, Hold((here, other), 2.0).digest(), Hold((here,), 1.0).digest(), Hold((other,), 1.0).digest()}) == 4
    )
