"""Merging by task vectors against values worked out by hand, and against the papers' own order of steps on tensors."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import adapter, apart_from_each_other, llama, load

import recall.chunks
from recall.checkpoints import Checkpoint
from recall.merging import merge_by
from recall.task_vectors import dare, pruned_average, ties

# theta_0 is 1 everywhere; the task vectors have no two like magnitudes.
FIRST = [1.0, 1.0, 1.0, 1.0]
TASK_VECTORS = [[4.0, -3.0, 0.5, 0.1], [-2.0, -1.0, 0.6, 0.2]]


def by_hand(tmp_path, method, **options):
    """What a method makes of the three vectors above, as the only tensor of three checkpoints."""
    models = [FIRST, *([1 + d for d in delta] for delta in TASK_VECTORS)]
    members = []
    for number, model in enumerate(models):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        save_file({"w": torch.tensor(model)}, folder / "model.safetensors", metadata={"format": "pt"})
        members.append(Checkpoint(folder))
    merge_by(members, method, tmp_path / "out", **options)
    return load_file(tmp_path / "out" / "model.safetensors")["w"] - 1


def test_ties_trims_elects_the_sign_of_the_larger_sum_and_averages_what_agrees(tmp_path):
    # Half of each stays: [4, -3, 0, 0] and [-2, -1, 0, 0]. Sums 2 and -4: plus and minus. 4 alone; -3 and -1.
    found = by_hand(tmp_path, ties(density=0.5, scale=1.0))
    torch.testing.assert_close(found, torch.tensor([4.0, -2.0, 0.0, 0.0]))


def test_ties_scales_what_it_adds(tmp_path):
    torch.testing.assert_close(by_hand(tmp_path, ties(0.5, 0.5)), torch.tensor([2.0, -1.0, 0.0, 0.0]))


def test_a_pruned_average_takes_what_is_trimmed_away_as_zero(tmp_path):
    found = by_hand(tmp_path, pruned_average(density=0.5, scale=1.0))
    torch.testing.assert_close(found, torch.tensor([1.0, -2.0, 0.0, 0.0]))


def test_dare_that_drops_nothing_is_task_arithmetic(tmp_path):
    found = by_hand(tmp_path, dare(density=1.0, scale=0.5, seed=0))
    torch.testing.assert_close(found, torch.tensor([1.0, -2.0, 0.55, 0.15]))


def reference_ties(first, others, density):
    """Sections 3.1 to 3.3 of the paper on whole tensors, sorting where the merge selects."""
    deltas = torch.stack([other.double() - first.double() for other in others])
    count = max(1, int(density * first.numel()))
    for delta in deltas:
        smallest_kept = delta.abs().flatten().sort(descending=True).values[count - 1]
        delta[delta.abs() < smallest_kept] = 0
    sign = torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0)
    agrees = (deltas * sign) > 0
    return first.double() + (deltas * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
def test_ties_is_the_paper_s_on_every_tensor_of_a_model(tmp_path, density, monkeypatch):
    monkeypatch.setattr(recall.chunks, "CHUNK", 64)
    pool = apart_from_each_other(llama, tmp_path, 4)
    merge_by(pool, ties(density, 1.0), tmp_path / "out", threads=2)
    first, *others = (load_file(member.folder / "model.safetensors") for member in pool)
    for name, found in load_file(tmp_path / "out" / "model.safetensors").items():
        expected = reference_ties(first[name], [other[name] for other in others], density)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("method", [ties(0.4, 0.7), pruned_average(0.4, 0.7), dare(0.4, 0.7, 3)])
def test_neither_chunks_nor_threads_change_a_bit(tmp_path, method, monkeypatch):
    pool = apart_from_each_other(llama, tmp_path, 3)
    merge_by(pool, method, tmp_path / "one", threads=1)
    monkeypatch.setattr(recall.chunks, "CHUNK", 64)
    merge_by(pool, method, tmp_path / "many", threads=3)
    one, many = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "many"))
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_dare_keeps_the_share_that_it_is_told_and_the_expectation(tmp_path):
    base = llama(tmp_path / "base")
    moved = {name: tensor + 1 for name, tensor in load_file(base.folder / "model.safetensors").items()}
    other = llama(tmp_path / "other")
    save_file(moved, other.folder / "model.safetensors", metadata={"format": "pt"})
    merge_by([base, other], dare(0.3, 1.0, 0), tmp_path / "out")
    merged, first = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "base"))
    differences = np.concatenate([(merged[name] - first[name]).flatten() for name in merged])
    kept = differences > 0.5
    assert kept.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(differences[kept], 1 / 0.3, rtol=1e-4)


def test_dare_drops_other_elements_with_another_seed(tmp_path):
    pool = apart_from_each_other(llama, tmp_path, 2)
    for seed in (0, 1):
        merge_by(pool, dare(0.5, 1.0, seed), tmp_path / f"out{seed}")
    zero, one = (load_file(tmp_path / f"out{seed}" / "model.safetensors") for seed in (0, 1))
    assert not torch.equal(zero["model.norm.weight"], one["model.norm.weight"])


def test_adapters_and_full_checkpoints_agree(tmp_path):
    from peft import PeftModel

    base = llama(tmp_path / "base")
    adapters = [adapter(tmp_path / f"adapter{seed}", base, seed=seed) for seed in (1, 2)]
    full = []
    for member in adapters:
        full.append(Checkpoint(member.folder / "whole"))
        PeftModel.from_pretrained(load(base), member.folder).merge_and_unload().save_pretrained(full[-1].folder)
    # Nothing is trimmed away, as rounding could tell which of two near magnitudes is the larger.
    merge_by([base, *adapters], ties(1.0, 1.0), tmp_path / "from_adapters")
    merge_by([base, *full], ties(1.0, 1.0), tmp_path / "from_full")
    from_full = load_file(tmp_path / "from_full" / "model.safetensors")
    for name, found in load_file(tmp_path / "from_adapters" / "model.safetensors").items():
        torch.testing.assert_close(found, from_full[name], rtol=1e-5, atol=2e-6)
