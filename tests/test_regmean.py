"""RegMean (Jin et al. 2023): second moments of layer inputs, and the closed form on them."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from safetensors.torch import load_file, save_file
from tiny import adapter, load
from transformers import AutoModelForCausalLM

from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.loading import load_tokenizer
from recall.merge_settings import MOMENTS_FILE
from recall.merging import merge, merge_by
from recall.moments import Moments, read_moments, second_moments
from recall.regmean import regmean
from recall.remaking_moments import moments_difference

PROMPTS = ["a b c", "one two three four", "x", "many more words than the others have", "short words"]
OTHER_PROMPTS = ["digits 1 2 3", "zebra", "quick brown foxes jump", "lazy dogs"]


def experts(folder, base_folder):
    """Two models of one shape with different weights, each with moments over prompts of its own."""
    tokenizer = load_tokenizer(base_folder)
    members = []
    for seed, prompts in ((1, PROMPTS), (2, OTHER_PROMPTS)):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base_folder)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        member = Checkpoint(folder / f"expert{seed}")
        model.save_pretrained(member.folder)
        found = second_moments(model.eval(), tokenizer, prompts, batch_size=2, max_tokens=32)
        found.save(member.folder / MOMENTS_FILE)
        members.append(member)
    return members


def moments_of(members):
    return [member.folder / MOMENTS_FILE for member in members]


def files_of(members):
    return [[path] for path in moments_of(members)]


def inputs_by_hook(model, tokenizer, prompts, module):
    """x of one linear map, `(tokens, inputs)`, one prompt at a time and without padding."""
    seen = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.no_grad():
        for prompt in prompts:
            model(torch.tensor([tokenizer(prompt).input_ids]))
    handle.remove()
    return torch.cat(seen).double()


@pytest.mark.parametrize("module", ["model.layers.0.self_attn.k_proj", "model.layers.2.mlp.down_proj"])
def test_moments_are_the_mean_over_tokens_without_padding(tiny_model_folder, module):
    model, tokenizer = load(Checkpoint(tiny_model_folder)).eval(), load_tokenizer(tiny_model_folder)
    found = second_moments(model, tokenizer, PROMPTS, batch_size=2, max_tokens=32)
    inputs = inputs_by_hook(model, tokenizer, PROMPTS, module)
    expected = inputs.T @ inputs / len(inputs)
    torch.testing.assert_close(found[f"{module}.weight"].double(), expected, rtol=1e-4, atol=1e-6)
    assert found.tokens == len(inputs)


def responses_by_hand(model, tokenizer, prompt, maps, direction_E):
    """sum_t ||J_t^T v||^2 / ||h||^2 x_t x_t^T, summed over maps that read the same, of one prompt: `(I, I)`."""
    seen, handles = [], []
    for name in maps:
        module = model.get_submodule(name)
        handles.append(module.register_forward_hook(lambda _, args, output: seen.append((args[0], output))))
    last_E = model.base_model(torch.tensor([tokenizer(prompt).input_ids])).last_hidden_state[0, -1]
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(last_E @ direction_E, [output for _, output in seen])
    total_II = 0
    for (inputs_1TI, _), gradient_1TO in zip(seen, gradients, strict=True):
        inputs_TI, counts_T = inputs_1TI[0].double(), gradient_1TO[0].double().square().sum(dim=1)
        total_II = total_II + (inputs_TI * counts_T[:, None]).T @ inputs_TI
    return (total_II / last_E.double().square().sum()).detach()


@pytest.mark.parametrize(
    "maps",
    [
        [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"],
        ["model.layers.0.mlp.down_proj"],
        ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"],
    ],
)
def test_an_input_may_count_as_much_as_the_answer_responds_to_it(tiny_model_folder, maps):
    """Whatever the batches, whose padding no answer responds to; no weight has a gradient afterwards."""
    model, tokenizer = load(Checkpoint(tiny_model_folder)).eval(), load_tokenizer(tiny_model_folder)
    prompts = sorted(PROMPTS, key=lambda prompt: len(tokenizer(prompt).input_ids))
    directions_PE = torch.randn(len(prompts), model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    own = [
        responses_by_hand(model, tokenizer, prompt, maps, direction_E)
        for prompt, direction_E in zip(prompts, directions_PE, strict=True)
    ]
    expected = torch.stack(own).mean(dim=0)
    for size in (1, 3):
        found = second_moments(model, tokenizer, PROMPTS, batch_size=size, max_tokens=32, weighting="response")
        assert len({found.shared[f"{name}.weight"] for name in maps}) == 1
        torch.testing.assert_close(found[f"{maps[0]}.weight"].double(), expected, rtol=1e-3, atol=1e-7)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_in_the_last_block_the_answer_responds_to_its_own_token_alone(tiny_model_folder):
    """In the last block no earlier token's MLP reaches the last token's state: one input, a matrix of rank one."""
    model, tokenizer = load(Checkpoint(tiny_model_folder)).eval(), load_tokenizer(tiny_model_folder)
    found = second_moments(model, tokenizer, ["a b c d e f"], batch_size=1, max_tokens=32, weighting="response")
    values_I = torch.linalg.eigvalsh(found["model.layers.2.mlp.gate_proj.weight"].double())
    assert values_I[-1] > 0
    assert values_I[:-1].abs().max() < 1e-5 * values_I[-1]


def test_an_adapter_s_inputs_count_as_its_full_model_s(tiny_model_folder, tiny_gpt2_folder, tmp_path):
    """And so do those of maps that lie the other way round."""
    from peft import PeftModel

    for base in (tiny_model_folder, tiny_gpt2_folder):
        expert = adapter(tmp_path / base.name, Checkpoint(base))
        tokenizer = load_tokenizer(base)
        both = [PeftModel.from_pretrained(load(expert.base), expert.folder).eval() for _ in range(2)]
        both[1] = both[1].merge_and_unload()
        over, full = (
            second_moments(model, tokenizer, PROMPTS, batch_size=2, max_tokens=32, weighting="response")
            for model in both
        )
        assert over.shared == full.shared
        for name in full.shared:
            torch.testing.assert_close(over[name], full[name], rtol=1e-3, atol=1e-3 * float(full[name].abs().max()))


def test_an_encoder_has_no_response(tmp_path, tiny_tokenizer):
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=len(tiny_tokenizer), **shape)).eval()
    with pytest.raises(BadInput, match="BertModel writes no text, which moments weighted by response need"):
        second_moments(model, tiny_tokenizer, PROMPTS, batch_size=2, max_tokens=32, weighting="response")


def test_moments_of_two_weightings_are_not_merged(tiny_model_folder, tmp_path):
    """Nor are they the same to an audit; files from before there was a choice are uniform, and say nothing."""
    members = experts(tmp_path, tiny_model_folder)
    path = moments_of(members)[1]
    found = read_moments(path)
    assert found.weighting == "uniform"
    assert b"weighting" not in path.read_bytes()
    other = path.with_name("other.safetensors")
    replace(found, weighting="response").save(other)
    assert moments_difference(other, path).relative == np.inf
    with pytest.raises(BadInput, match="has moments weighted response and the first model's are weighted uniform"):
        merge_by(members, regmean([[moments_of(members)[0]], [other]], shrink=0.9), tmp_path / "out")


@pytest.mark.parametrize("weighting", ["uniform", "response"])
def test_a_model_that_lays_all_tokens_in_one_row_has_the_moments_of_any(tiny_tokenizer, weighting):
    """OPT does, between its attention and what follows it."""
    model = ARCHITECTURES["opt"].make().eval()
    prompts = ["a b c", "one two three four"]
    together, apart = (
        second_moments(model, tiny_tokenizer, prompts, batch_size=size, max_tokens=32, weighting=weighting)
        for size in (2, 1)
    )
    assert "model.decoder.layers.0.fc1.weight" in together.shared
    for name in together.shared:
        assert float(apart[name].abs().max()) > 0
        torch.testing.assert_close(together[name], apart[name], rtol=1e-4, atol=1e-6)


def test_moments_that_cannot_be_inverted_are_named(tiny_model_folder, tmp_path):
    members = experts(tmp_path, tiny_model_folder)
    for path in moments_of(members):
        found = read_moments(path)
        broken = Moments(lambda name, own=found: -own.matrix(name), found.shared, found.transposed, found.inputs, 1)
        broken.save(path)
    with pytest.raises(BadInput, match="are of too few directions to be inverted; lower shrink"):
        merge_by(members, regmean(files_of(members), shrink=1.0), tmp_path / "out")


def test_maps_that_read_the_same_share_one_matrix_and_the_head_has_none(tiny_model_folder):
    model, tokenizer = load(Checkpoint(tiny_model_folder)).eval(), load_tokenizer(tiny_model_folder)
    shared = second_moments(model, tokenizer, PROMPTS, batch_size=2, max_tokens=32).shared
    block = "model.layers.0."
    assert {shared[f"{block}self_attn.{name}_proj.weight"] for name in "qkv"} == {f"{block}self_attn.q_proj.weight"}
    assert shared[f"{block}mlp.up_proj.weight"] == f"{block}mlp.gate_proj.weight"
    assert len(set(shared.values())) == 4 * 3
    assert "lm_head.weight" not in shared


def test_a_pooler_which_reads_no_row_a_token_has_no_moments(tiny_tokenizer):
    model = ARCHITECTURES["bert_classifier"].make().eval()
    found = second_moments(model, tiny_tokenizer, ["a", "b", *PROMPTS], batch_size=2, max_tokens=32)
    assert "bert.encoder.layer.0.attention.self.query.weight" in found.shared
    assert not any("pooler" in name for name in [*found.shared, *found.inputs])


def test_an_adapter_s_moments_are_those_of_its_full_model(tiny_model_folder, tmp_path):
    from peft import PeftModel

    expert = adapter(tmp_path / "adapter", Checkpoint(tiny_model_folder))
    tokenizer = load_tokenizer(tiny_model_folder)
    both = [PeftModel.from_pretrained(load(expert.base), expert.folder).eval() for _ in range(2)]
    laid_over = second_moments(both[0], tokenizer, PROMPTS, batch_size=2, max_tokens=32)
    merged = second_moments(both[1].merge_and_unload(), tokenizer, PROMPTS, batch_size=2, max_tokens=32)
    assert laid_over.shared == merged.shared
    for name in merged.shared:
        torch.testing.assert_close(laid_over[name], merged[name], rtol=1e-3, atol=1e-5)


def test_moments_survive_their_file(tiny_model_folder, tmp_path):
    model, tokenizer = load(Checkpoint(tiny_model_folder)).eval(), load_tokenizer(tiny_model_folder)
    found = second_moments(model, tokenizer, PROMPTS, batch_size=2, max_tokens=32)
    found.save(tmp_path / MOMENTS_FILE)
    again = read_moments(tmp_path / MOMENTS_FILE)
    assert (again.shared, again.transposed, again.tokens) == (found.shared, found.transposed, found.tokens)
    assert all(torch.equal(again[name], found[name]) for name in found.shared)


def closed_form(weights, grams, shrink=0.9):
    """Equation 2 of the paper with off-diagonals shrunk, by a general solver."""
    shrunk = [shrink * gram + (1 - shrink) * torch.diag(gram.diagonal()) for gram in grams]
    right = sum(gram @ weight.double().T for weight, gram in zip(weights, shrunk, strict=True))
    return torch.linalg.solve(sum(shrunk), right).T


def check_merge(members, out, turned):
    moments = [read_moments(path) for path in moments_of(members)]
    models = [load_file(member.folder / "model.safetensors") for member in members]
    for name, found in load_file(out / "model.safetensors").items():
        weights = [model[name] for model in models]
        if name not in moments[0].shared:
            torch.testing.assert_close(found, torch.stack(weights).mean(dim=0))
            continue
        grams = [moment[name].double() for moment in moments]
        expected = closed_form([weight.T if turned else weight for weight in weights], grams)
        found = found.double().T if turned else found.double()
        # A ridge of a millionth keeps unused inputs solvable.
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_linear_maps_are_the_closed_form_and_the_rest_is_averaged(tiny_model_folder, tmp_path):
    members = experts(tmp_path, tiny_model_folder)
    merge_by(members, regmean(files_of(members)), tmp_path / "out", threads=2)
    check_merge(members, tmp_path / "out", turned=False)


def test_maps_kept_as_inputs_by_outputs_too(tiny_gpt2_folder, tmp_path):
    members = experts(tmp_path, tiny_gpt2_folder)
    merge_by(members, regmean(files_of(members)), tmp_path / "out", threads=2)
    check_merge(members, tmp_path / "out", turned=True)


def test_equal_experts_come_back(tiny_model_folder, tmp_path):
    (member, _) = experts(tmp_path, tiny_model_folder)
    merge_by([member, member], regmean(files_of([member, member])), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, expected in load_file(member.folder / "model.safetensors").items():
        torch.testing.assert_close(merged[name], expected, rtol=1e-4, atol=1e-5)


def test_the_merged_maps_are_nearer_to_the_experts_on_their_own_inputs_than_the_average(tiny_model_folder, tmp_path):
    members = experts(tmp_path, tiny_model_folder)
    merge_by(members, regmean(files_of(members), shrink=1.0), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    models = [load_file(member.folder / "model.safetensors") for member in members]
    moments = [read_moments(path) for path in moments_of(members)]
    name = "model.layers.0.mlp.up_proj.weight"

    def distance(candidate):
        gaps = [candidate.double() - model[name].double() for model in models]
        return sum((gap @ m[name].double() @ gap.T).trace() for gap, m in zip(gaps, moments, strict=True)).item()

    assert distance(merged[name]) < 0.9 * distance(torch.stack([model[name] for model in models]).mean(dim=0))


def test_a_model_without_moments_is_refused(tiny_model_folder, tmp_path):
    members = experts(tmp_path, tiny_model_folder)
    (members[1].folder / MOMENTS_FILE).unlink()
    with pytest.raises(BadInput, match=r"moments\.safetensors is missing; make it .* with `recall moments`"):
        merge_by(members, regmean(files_of(members)), tmp_path / "out")


def test_a_file_that_holds_no_moments_is_refused(tiny_model_folder, tmp_path):
    members = experts(tmp_path, tiny_model_folder)
    save_file({"a": torch.zeros(1)}, members[1].folder / MOMENTS_FILE)
    with pytest.raises(BadInput, match="holds no moments"):
        merge_by(members, regmean(files_of(members)), tmp_path / "out")


def test_moments_of_another_model_are_refused(tiny_model_folder, tiny_gpt2_folder, tmp_path):
    members, others = experts(tmp_path / "a", tiny_model_folder), experts(tmp_path / "b", tiny_gpt2_folder)
    with pytest.raises(BadInput, match="does not fit the models"):
        merge_by(members, regmean([files_of(members)[0], files_of(others)[0]]), tmp_path / "out")


def test_moments_that_share_their_inputs_otherwise_are_refused(tiny_model_folder, tmp_path):
    members = experts(tmp_path, tiny_model_folder)
    path = moments_of(members)[1]
    found = read_moments(path)
    name = next(weight for weight, shared in found.shared.items() if weight != shared)
    apart = replace(
        found, matrix=lambda key: found.matrix(found.shared[key]).clone(), shared=found.shared | {name: name}
    )
    replace(apart, inputs={key: found.inputs[found.shared[key]] for key in apart.shared.values()}).save(path)
    with pytest.raises(BadInput, match=f"it differs in {re.escape(name)}"):
        merge_by(members, regmean(files_of(members)), tmp_path / "out")


def test_moments_with_a_nan_are_refused(tiny_model_folder, tmp_path):
    members = experts(tmp_path, tiny_model_folder)
    found = read_moments(moments_of(members)[0])
    replace(found, matrix=lambda name: found.matrix(name) * float("nan")).save(moments_of(members)[0])
    with pytest.raises(BadInput, match="hold NaN or Inf; make them again"):
        merge_by(members, regmean(files_of(members)), tmp_path / "out")


def test_a_float64_model_is_merged_in_float64(tiny_model_folder, tmp_path):
    members = experts(tmp_path, tiny_model_folder)
    for member in members:
        model = AutoModelForCausalLM.from_pretrained(member.folder, dtype=torch.float64)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight += 1e-10
        model.save_pretrained(member.folder)
    merge_by(members, regmean(files_of(members)), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert merged.dtype == torch.float64
    assert not torch.equal(merged, merged.float().double())


def test_moments_of_a_rank_keep_the_diagonal_and_the_largest_directions(tiny_model_folder, tmp_path):
    model, tokenizer = load(Checkpoint(tiny_model_folder)).eval(), load_tokenizer(tiny_model_folder)
    found = second_moments(model, tokenizer, PROMPTS, batch_size=2, max_tokens=32)
    found.save(tmp_path / "whole")
    found.save(tmp_path / "rank", rank=4)
    again, name = read_moments(tmp_path / "rank"), "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(again[name].diagonal(), found[name].diagonal(), rtol=1e-4, atol=1e-6)
    best = torch.linalg.eigvalsh(found[name].double())
    gap = (again[name] - torch.diag((again[name] - found[name]).diagonal())).double() - found[name].double()
    assert gap.norm() <= best[:-4].norm() * 2 + 1e-6
    assert (tmp_path / "rank").stat().st_size < (tmp_path / "whole").stat().st_size / 2


def test_a_rank_as_large_as_the_inputs_keeps_all(tiny_model_folder, tmp_path):
    model, tokenizer = load(Checkpoint(tiny_model_folder)).eval(), load_tokenizer(tiny_model_folder)
    found = second_moments(model, tokenizer, PROMPTS, batch_size=2, max_tokens=32)
    found.save(tmp_path / "all", rank=10_000)
    for name in found.shared:
        assert torch.equal(read_moments(tmp_path / "all")[name], found[name])


def test_weights_count_each_model_s_moments(tiny_model_folder, tmp_path):
    members = experts(tmp_path, tiny_model_folder)
    weights = np.array([[0.3, 0.7], [0.9, 0.1]])
    deep = "model.layers.2."
    method = regmean(files_of(members), 0.9, weights, lambda name: int(name.startswith(deep)))
    merge_by(members, method, tmp_path / "out", threads=2)
    moments = [read_moments(path) for path in moments_of(members)]
    models = [load_file(member.folder / "model.safetensors") for member in members]
    for name, found in load_file(tmp_path / "out" / "model.safetensors").items():
        row, both = weights[int(name.startswith(deep))], [model[name] for model in models]
        if name in moments[0].shared:
            grams = [weight * moment[name].double() for weight, moment in zip(row, moments, strict=True)]
            torch.testing.assert_close(found.double(), closed_form(both, grams), rtol=1e-2, atol=1e-3)
        else:
            torch.testing.assert_close(found, (row[0] * both[0] + row[1] * both[1]).to(found.dtype))


def test_even_weights_are_regmean(tiny_model_folder, tmp_path):
    members = experts(tmp_path, tiny_model_folder)
    merge_by(members, regmean(files_of(members)), tmp_path / "plain")
    merge_by(members, regmean(files_of(members), 0.9, np.full((1, 2), 0.5), lambda _: 0), tmp_path / "even")
    plain, even = (load_file(tmp_path / out / "model.safetensors") for out in ("plain", "even"))
    assert all(torch.equal(plain[name], even[name]) for name in plain)


@pytest.mark.parametrize("experts_of_current", [1, 3])
def test_equal_moments_give_recall_s_own_merge(tiny_model_folder, tmp_path, experts_of_current):
    """However many experts the current model stands for: its weight is its weight."""
    members = experts(tmp_path, tiny_model_folder)
    file = members[0].folder / MOMENTS_FILE
    same = [[file] * experts_of_current, [file]]
    weights = np.array([[0.3, 0.7]])
    merge_by(members, regmean(same, 1.0, weights, lambda _: 0), tmp_path / "solved")
    merge(members, weights, lambda _: 0, tmp_path / "summed")
    solved, summed = (load_file(tmp_path / out / "model.safetensors") for out in ("solved", "summed"))
    for name in summed:
        torch.testing.assert_close(solved[name], summed[name], rtol=1e-3, atol=1e-4)
