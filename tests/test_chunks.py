"""How a merge is cut into chunks, and that it keeps to its memory."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import adapter, apart_from_each_other, llama

from recall.chunks import CHUNK, SMALLEST_CHUNK, Lanes, fit_lanes, memory_needed, process_memory, slices
from recall.errors import BadInput
from recall.pool import Pool
from recall.tensor_files import TensorSpec


@given(st.lists(st.integers(0, 40), max_size=3), st.integers(1, 500))
def test_slices_cover_every_element_once_and_matrices_by_whole_rows(shape, chunk):
    spec = TensorSpec("F32", tuple(shape))
    parts = list(slices("w", spec, chunk))
    assert [part.start for part in parts] == [0, *(part.stop for part in parts)][: len(parts)]
    assert (parts[-1].stop if parts else 0) == spec.size
    if len(shape) == 2:
        assert all(part.start % shape[1] == part.stop % shape[1] == 0 for part in parts)
        assert all(part.stop - part.start <= max(chunk, shape[1]) for part in parts)
    else:
        assert all(part.stop - part.start <= chunk for part in parts)


@pytest.fixture
def pool(tmp_path):
    """Tensors of half a million elements, so that chunks matter."""
    wide = {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 4096}
    opened = Pool(apart_from_each_other(llama, tmp_path, 2, **wide))
    yield opened
    opened.close()


def test_with_enough_memory_nothing_changes(pool):
    assert fit_lanes(pool, 4, 10**12) == Lanes(4, CHUNK)


def test_chunks_get_smaller_before_threads_get_fewer(pool):
    needed = memory_needed(pool, Lanes(2, CHUNK))
    assert fit_lanes(pool, 2, needed - 1) == Lanes(2, CHUNK // 2)
    least = memory_needed(pool, Lanes(1, SMALLEST_CHUNK))
    lanes = fit_lanes(pool, 64, least + (memory_needed(pool, Lanes(64, SMALLEST_CHUNK)) - least) // 2)
    assert lanes.chunk == SMALLEST_CHUNK
    assert 1 < lanes.threads < 64


def test_too_little_memory_is_said_with_what_is_needed(pool):
    with pytest.raises(BadInput, match=r"this merge needs \d+ MB, but --max-memory allows 1 MB; raise it"):
        fit_lanes(pool, 2, 10**6)


def test_adapters_count_with_their_ranks(tmp_path):
    base = llama(tmp_path / "base")
    one = Pool([base, adapter(tmp_path / "1", base, seed=1)])
    many = Pool([base, *(adapter(tmp_path / f"many{seed}", base, seed=seed, rank=16) for seed in (1, 2, 3))])
    alone = Lanes(1, CHUNK)
    assert memory_needed(many, alone) - process_memory() > memory_needed(one, alone) - process_memory()


MEASURED = """
import re, sys
from pathlib import Path
import numpy as np
from recall.checkpoints import Checkpoint
from recall.chunks import process_memory
from recall.merging import merge
def even_merge(models, output, **limits):
    members = [Checkpoint(Path(name)) for name in models]
    merge(members, np.full((1, len(members)), 1 / len(members)), lambda _: 0, Path(output), threads=2, **limits)
output, budget, *models = sys.argv[1:]
small, large = models[: len(models) // 2], models[len(models) // 2 :]
even_merge(small, output + "-small")
before = process_memory()
even_merge(large, output, max_memory=before + int(budget))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(int(peak) * 1024 - before)
"""


@pytest.mark.parametrize("count", [2, 6])
def test_a_merge_keeps_to_its_budget_whatever_the_models_size_and_number(tmp_path, count):
    wide = {"vocab_size": 40000, "hidden_size": 256, "num_hidden_layers": 1}
    models = [llama(tmp_path / str(seed), seed=seed, **wide).folder for seed in range(count)]
    so_that_code_is_read_in = [llama(tmp_path / f"small{seed}", seed=seed).folder for seed in range(count)]
    size = sum(path.stat().st_size for path in models[0].glob("*.safetensors"))
    budget = 12_000_000
    assert size > 3 * budget
    command = [sys.executable, "-c", MEASURED, tmp_path / "out", budget, *so_that_code_is_read_in, *models]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < budget + 4_000_000, "a little for what the allocator keeps"
