"""A merge whose chunks are computed on a device: the CPU by the way of a GPU's chunks, and a GPU where there is one."""

import json

import numpy as np
import pytest
import torch
from merge_fixture import merged, refused, tensors, write_weights
from safetensors.torch import load_file
from tiny import adapter, apart_from_each_other, llama

from recall.buffers import Buffers
from recall.chunks import (
    DEVICE_BYTES_AN_ELEMENT,
    DEVICE_CHUNK,
    SMALLEST_CHUNK,
    Lanes,
    Slice,
    device_memory_needed,
    fit_lanes,
    memory_needed,
    process_memory,
)
from recall.errors import BadInput
from recall.merging import merge
from recall.pool import Pool
from recall.tensor_files import TensorFolder

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=needs_gpu)]
SHARES = [0.1, 0.2, 0.3, 0.4]
WIDE = {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 4096, "num_hidden_layers": 1}


def merge_all(members, out, **options):
    """One row of weights for every tensor, so that no model has to be built."""
    shares = np.array([SHARES[: len(members)]]) / sum(SHARES[: len(members)])
    merge(members, shares, lambda _: 0, out, threads=3, **options)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_full_models_give_the_same_bits_as_without_a_device(tmp_path, device, dtype):
    models = apart_from_each_other(llama, tmp_path, 4, dtype=dtype, **WIDE)
    expected = merge_all(models, tmp_path / "plain")
    found = merge_all(models, tmp_path / "out", device=device)
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("device", DEVICES)
def test_equal_models_come_back_bit_for_bit(tmp_path, device):
    models = [llama(tmp_path / str(number), seed=3) for number in range(3)]
    found = merge_all(models, tmp_path / "out", device=device)
    for name, expected in load_file(models[0].folder / "model.safetensors").items():
        assert torch.equal(found[name], expected)


@pytest.mark.parametrize("device", DEVICES)
def test_adapters_give_the_same_numbers_and_small_chunks_do_too(tmp_path, device):
    base = llama(tmp_path / "base", **WIDE)
    members = [base, *(adapter(tmp_path / f"lora{seed}", base, seed=seed, rank=3 + seed) for seed in (1, 2, 3))]
    expected = merge_all(members, tmp_path / "plain")
    for name in ("large", "small"):
        # Of what this process holds by then: a merge before leaves some of its memory with the allocator.
        options = {"max_memory": process_memory() + 30_000_000} if name == "small" else {}
        found = merge_all(members, tmp_path / name, device=device, **options)
        for tensor in found:
            torch.testing.assert_close(found[tensor], expected[tensor], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_chunks_go_to_the_device_one_after_the_other_and_come_back_rounded(tmp_path, device):
    folder = TensorFolder(llama(tmp_path / "a", **WIDE).folder)
    name = "model.embed_tokens.weight"
    stored = load_file(folder.folder / "model.safetensors")[name].flatten()
    buffers = Buffers(1000, 4, device)
    first = buffers.read(folder, Slice(name, 0, 1000)).clone()
    second = buffers.read(folder, Slice(name, 1000, 2000))
    assert first.device.type == second.device.type == device.type
    assert torch.equal(first.cpu(), stored[:1000])
    assert torch.equal(second.cpu(), stored[1000:2000])
    rounded = buffers.rounded(second, "BF16")
    assert torch.equal(torch.frombuffer(rounded, dtype=torch.bfloat16), stored[1000:2000].bfloat16())
    folder.close()


def test_one_fused_step_a_model_is_what_a_gpu_computes():
    """CUDA's addcmul is a fused multiply-add; so is the CPU's where the processor has one, to the last bit."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("this CPU's addcmul rounds the product too")
    torch.manual_seed(0)
    total, model, weight = torch.randn(100_003), torch.randn(100_003), torch.tensor(0.3)
    fused = (total.double() + model.double() * weight.double()).float()
    assert torch.equal(total.clone().addcmul_(model, weight), fused)
    assert not torch.equal(total + model * weight, fused)


@pytest.fixture
def wide_pool(tmp_path):
    opened = Pool(apart_from_each_other(llama, tmp_path, 2, dtype=torch.bfloat16, **WIDE))
    yield opened
    opened.close()


def test_chunks_are_larger_than_a_core_s_cache_and_bound_the_memory_of_the_device(wide_pool):
    lanes = fit_lanes(wide_pool, 4, device=CPU)
    assert lanes == Lanes(4, DEVICE_CHUNK, CPU)
    largest = max(spec.size for spec in wide_pool.specs.values())
    assert largest < DEVICE_CHUNK
    assert device_memory_needed(wide_pool, lanes) == 4 * largest * DEVICE_BYTES_AN_ELEMENT
    assert device_memory_needed(wide_pool, Lanes(4, DEVICE_CHUNK)) == 0


def test_a_budget_bounds_the_host_and_free_memory_the_device(wide_pool, monkeypatch):
    pinned = 3 * 2 * 4096 * 128  # two chunks that are read in turns and one that is written, in bf16
    assert memory_needed(wide_pool, Lanes(1, DEVICE_CHUNK, CPU)) - process_memory() == pytest.approx(pinned, abs=1e6)
    lanes = fit_lanes(wide_pool, 4, process_memory() + 3 * pinned, device=CPU)
    assert SMALLEST_CHUNK < lanes.chunk < DEVICE_CHUNK
    with pytest.raises(BadInput, match=r"but --max-memory allows 1 MB; raise it"):
        fit_lanes(wide_pool, 4, 10**6, device=CPU)
    whole = device_memory_needed(wide_pool, Lanes(4, DEVICE_CHUNK, CPU))
    monkeypatch.setattr("recall.chunks.free_memory", lambda _: whole // 3)
    assert device_memory_needed(wide_pool, fit_lanes(wide_pool, 4, device=CPU)) <= whole // 3
    monkeypatch.setattr("recall.chunks.free_memory", lambda _: 1000)
    with pytest.raises(BadInput, match=r"MB on cpu, which has 0 MB left; choose another --device"):
        fit_lanes(wide_pool, 4, device=CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_without_a_gpu_cuda_is_refused_before_anything_is_read(tmp_path, options):
    models = [tmp_path / "no_model", tmp_path / "none_here_either"]
    sentence = refused(models, tmp_path / "out", "--method", "average", "--device", "cuda", *options)
    assert "--device cuda: torch" in sentence
    assert "sees no GPU; leave out --device to use the CPU" in sentence


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "gpu"), "--device gpu:"),
        (("--device", "cuda", "--method", "ties"), "--method ties is computed on the CPU alone; leave out --device"),
        (("--device", "cuda", "--as-adapter"), "--as-adapter is computed on the CPU alone; leave out --device cuda"),
    ],
)
def test_devices_that_do_not_fit(pool, tmp_path, options, words):
    given = ("--method", "average", *options) if "--method" not in options else options
    assert words in refused([pool / "base", pool / "expert1"], tmp_path / "out", *given)


@pytest.mark.parametrize("device", DEVICES)
def test_the_command_merges_there_and_a_dry_run_says_what_it_takes(pool, tmp_path, monkeypatch, device):
    if device == CPU:
        # In place of a GPU: all that `--device cuda` does but for the copies' going anywhere.
        monkeypatch.setattr("recall.devices.find_device", lambda _: device)
        monkeypatch.setattr("recall.merge_plan.find_device", lambda _: device)
    models = [pool / "base", pool / "expert1", pool / "lora1"]
    rows = write_weights(tmp_path / "w.json", [[0.2, 0.5, 0.3]] * 4)
    options = ("--weights", rows, "--device", "cuda")
    plan = json.loads(merged(models, tmp_path / "out", *options, "--dry-run", "--json").stdout)
    assert plan["device"] == "cuda"
    assert plan["device_memory"] > 0
    assert "MB on cuda" in " ".join(merged(models, tmp_path / "out", *options, "--dry-run").stdout.split())
    merged(models, tmp_path / "out", *options)
    merged(models, tmp_path / "plain", "--weights", rows)
    expected = tensors(tmp_path / "plain")
    for name, found in tensors(tmp_path / "out").items():
        torch.testing.assert_close(found, expected[name], rtol=1e-6, atol=1e-7)
