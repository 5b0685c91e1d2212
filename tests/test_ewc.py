"""Elastic weight consolidation is its formula, keeps what it is told to keep, and changes nothing where it is off."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from test_finetuning import ROWS, SETTINGS, STEPS, weights
from torch.nn.functional import cross_entropy

from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.ewc import Consolidation, Penalty, add_fisher, read_fisher, write_fisher
from recall.finetuning import finetune
from recall.loading import load_model, load_tokenizer
from recall.settings import FisherSettings, LoraSettings

FISHER = FisherSettings(samples=64, target_modules="all-linear", max_tokens=512, seed=0)
TARGETS = {"llama": "all-linear", "gpt2": "all-linear", "embeddings": ["embed_tokens", "q_proj", "down_proj"]}


@pytest.fixture
def folder_of(tiny_model_folder, tiny_gpt2_folder):
    return {"llama": tiny_model_folder, "gpt2": tiny_gpt2_folder, "embeddings": tiny_model_folder}


def read(folder):
    return load_model(folder, torch.float32), load_tokenizer(folder)


def fisher_of(folder, rows=ROWS, settings=FISHER, earlier=None):
    return add_fisher(earlier or {}, *read(folder), rows, settings)


def by_hand(folder, rows, names):
    """The mean over rows of the squared gradient of log p(answer | prompt), in float64, by plain autograd."""
    model, tokenizer = read(folder)
    model.double()
    total = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
    for row in rows:
        ids_1T = tokenizer(f"{row.prompt} {row.target}{tokenizer.eos_token}", return_tensors="pt").input_ids.to(
            model.device
        )
        start = len(tokenizer(row.prompt).input_ids)
        model.zero_grad()
        cross_entropy(model(ids_1T).logits[0, start - 1 : -1], ids_1T[0, start:], reduction="sum").backward()
        for name in names:
            total[name] += model.get_parameter(name).grad ** 2 / len(rows)
    return total


@pytest.mark.parametrize("case", TARGETS)
def test_the_fisher_is_the_mean_squared_gradient_of_a_row(case, folder_of):
    folder = folder_of[case]
    found = fisher_of(folder, ROWS[:5], FISHER.model_copy(update={"target_modules": TARGETS[case]}))
    wanted = by_hand(folder, ROWS[:5], found)
    assert len(found) == {"llama": 3 * 7, "gpt2": 2 * 4, "embeddings": 1 + 3 * 2}[case]
    for name, fisher in found.items():
        torch.testing.assert_close(fisher.double(), wanted[name].to(fisher.device), rtol=1e-3, atol=1e-9)
        assert fisher.dtype == torch.float32
        assert (fisher > 0).any()


def test_the_fishers_of_earlier_learning_tasks_are_added(tiny_model_folder):
    first, second = fisher_of(tiny_model_folder, ROWS[:4]), fisher_of(tiny_model_folder, ROWS[4:9])
    both = fisher_of(tiny_model_folder, ROWS[4:9], earlier={name: fisher.clone() for name, fisher in first.items()})
    for name, fisher in both.items():
        torch.testing.assert_close(fisher, first[name] + second[name])


def test_at_most_so_many_rows_are_read_the_same_ones_every_time(tiny_model_folder):
    few = FISHER.model_copy(update={"samples": 3})
    found, again = fisher_of(tiny_model_folder, settings=few), fisher_of(tiny_model_folder, settings=few)
    assert all(torch.equal(found[name], again[name]) for name in found)
    other = fisher_of(tiny_model_folder, settings=few.model_copy(update={"seed": 1}))
    assert not all(torch.equal(found[name], other[name]) for name in found)


def test_the_model_is_left_as_it_was(tiny_model_folder):
    model, tokenizer = read(tiny_model_folder)
    model.get_parameter("model.norm.weight").requires_grad_(False)
    before = {name: (parameter.clone(), parameter.requires_grad) for name, parameter in model.named_parameters()}
    add_fisher({}, model, tokenizer, ROWS[:2], FISHER)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks


def random_adapter(folder, target_modules):
    """A model in float64 with a LoRA adapter whose factors are not zero, and a random Fisher of what it changes."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=target_modules, init_lora_weights=False)
    model = get_peft_model(read(folder)[0], config).double()
    layers = {f"{n}.weight": p for n, p in model.get_base_model().named_modules() if isinstance(p, LoraLayer)}
    return (
        model,
        layers,
        {name: torch.rand(layer.weight.shape, device=layer.weight.device) for name, layer in layers.items()},
    )


@pytest.mark.parametrize("case", TARGETS)
def test_the_penalty_and_its_gradient_are_those_of_the_dense_formula(case, folder_of, tmp_path):
    model, layers, fisher = random_adapter(folder_of[case], TARGETS[case])
    write_fisher(fisher, tmp_path)
    found = Penalty(model, Consolidation(tmp_path, 3.0))()
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    dense = sum((fisher[name] * layer.get_delta_weight("default") ** 2).sum() for name, layer in layers.items())
    torch.testing.assert_close(found, 3.0 / 2 * dense)
    assert len(factors) == 2 * len(layers)
    for gradient, wanted in zip(
        torch.autograd.grad(found, factors), torch.autograd.grad(3.0 / 2 * dense, factors), strict=True
    ):
        torch.testing.assert_close(gradient, wanted)


def test_a_fisher_of_other_weights_is_refused(tiny_model_folder, tmp_path):
    model, _, fisher = random_adapter(tiny_model_folder, "all-linear")
    lost = fisher.pop("model.layers.1.mlp.up_proj.weight")
    write_fisher(fisher, tmp_path)
    with pytest.raises(BadInput, match=r"differ in model\.layers\.1\.mlp\.up_proj\.weight; make both with the same"):
        Penalty(model, Consolidation(tmp_path, 1.0))
    with pytest.raises(BadInput, match="up_proj"):
        fisher_of(tiny_model_folder, earlier=fisher | {"model.layers.1.mlp.up_proj.weight": lost.T})


@pytest.fixture
def run(tiny_model_folder, tmp_path):
    """Fine-tune into a folder of that name."""

    def training(name, keep=None, **changes):
        settings = SETTINGS.model_copy(update=changes)
        return finetune(
            Checkpoint(tiny_model_folder), ROWS, settings, tmp_path / name, tmp_path / f"{name}_work", keep=keep
        )

    return training


@pytest.fixture
def keep(tiny_model_folder, tmp_path):
    """Keep, at some strength, what a real Fisher says is needed."""
    (tmp_path / "fisher").mkdir()
    write_fisher(fisher_of(tiny_model_folder), tmp_path / "fisher")
    return lambda strength: Consolidation(tmp_path / "fisher", strength)


def test_strength_0_gives_the_bytes_of_plain_fine_tuning(run, keep, tmp_path):
    plain, off, on = run("plain"), run("off", keep(0.0)), run("on", keep(1.0))
    assert weights(tmp_path / "off") == weights(tmp_path / "plain")
    assert off.losses == plain.losses
    assert weights(tmp_path / "on") != weights(tmp_path / "plain")
    assert on.losses[0] == plain.losses[0], "LoRA starts at the model that is to be kept"


def test_batches_of_one_step_bear_its_penalty_once(run, keep):
    """The second step's loss has a penalty that is most of it."""
    changes = {"epochs": 2, "warmup_ratio": 0, "lora": LoraSettings(r=4)}
    whole = run("whole", keep(1e3), batch_size=18, gradient_accumulation=1, **changes)
    parts = run("parts", keep(1e3), batch_size=4, gradient_accumulation=5, **changes)
    free = run("free", batch_size=18, gradient_accumulation=1, **changes)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-3)
    assert whole.losses[1] > 2 * free.losses[1]


def test_a_huge_strength_holds_what_is_needed_and_only_that(run, tiny_model_folder, tmp_path):
    """F is 1 in the first block and 0 in the others: there the adapter stays at zero difference, here it learns."""
    (tmp_path / "fisher").mkdir()
    first = "model.layers.0."
    fisher = {n: torch.full_like(f, float(n.startswith(first))) for n, f in fisher_of(tiny_model_folder).items()}
    write_fisher(fisher, tmp_path / "fisher")
    changes = {"epochs": 10, "gradient_accumulation": 1, "lora": LoraSettings(r=4)}
    free = run("free", **changes)
    held = run("held", Consolidation(tmp_path / "fisher", 1e6), **changes)
    assert moved(tmp_path / "held", first) < 0.01 * moved(tmp_path / "free", first)
    assert moved(tmp_path / "held", "model.layers.1.") > 0.3 * moved(tmp_path / "free", "model.layers.1.")
    assert held.losses[-1] < 0.5 * free.losses[0]


def moved(out, block):
    """The norm of B A over a block."""
    tensors = load_file(out / "adapter_model.safetensors")
    pairs = [
        (tensors[n.replace("lora_A", "lora_B")], low) for n, low in tensors.items() if block in n and "lora_A" in n
    ]
    return sum((high @ low).square().sum() for high, low in pairs).sqrt()


def test_it_goes_on_from_a_checkpoint_of_the_same_penalty_alone(run, keep, tmp_path):
    whole = run("whole", keep(10.0))
    for name in ("resumed", "stronger"):
        shutil.copytree(
            tmp_path / "whole_work" / f"checkpoint-{STEPS - 2}", tmp_path / f"{name}_work" / f"checkpoint-{STEPS - 2}"
        )
    marker = tmp_path / "resumed_work" / f"checkpoint-{STEPS - 2}" / "complete.json"
    before = marker.stat().st_ino
    assert run("resumed", keep(10.0)).losses == whole.losses
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")
    assert marker.stat().st_ino == before
    run("stronger", keep(20.0))
    run("fresh", keep(20.0))
    assert weights(tmp_path / "stronger") == weights(tmp_path / "fresh")


def test_the_digest_covers_what_changes_the_result_and_not_where_it_lies(keep, tmp_path):
    here = keep(1.0)
    there = Consolidation(shutil.copytree(here.folder, tmp_path / "there"), 1.0)
    assert there.digest() == here.digest()
    assert keep(2.0).digest() != here.digest()
    fisher = read_fisher(there.folder, torch.device("cpu"))
    save_file({name: tensor * 2 for name, tensor in fisher.items()}, there.folder / "fisher.safetensors")
    assert there.digest() != here.digest()
