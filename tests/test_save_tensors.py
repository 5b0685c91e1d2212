"""Tensors that cannot be written end in the system's own error, as every other file does."""

import errno

import pytest
import torch
from safetensors.torch import load_file

from recall.ewc import write_fisher
from recall.moments import Moments
from recall.save_tensors import save_tensors

LARGE = torch.zeros(10_000)


def test_what_is_written_reads_back_with_its_metadata(tmp_path):
    save_tensors({"a": torch.arange(3)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [0, 1, 2]
    assert b'"format":"pt"' in (tmp_path / "x.safetensors").read_bytes()


def test_a_file_that_the_system_refuses_is_its_error_with_number_and_name(tmp_path, files_of_at_most):
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large") as error:
        save_tensors({"a": LARGE}, tmp_path / "x.safetensors")
    assert error.value.errno == errno.EFBIG
    assert error.value.filename == str(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError):
        save_tensors({"a": LARGE}, tmp_path / "nowhere" / "x.safetensors")


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_fisher({"a": LARGE}, folder),
        lambda folder: Moments(lambda _: LARGE, {"a": "a"}, frozenset(), {"a": 1}, 1).save(folder / "m.safetensors"),
    ],
    ids=["fisher", "moments"],
)
def test_so_do_all_that_write_tensors(tmp_path, files_of_at_most, write):
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        write(tmp_path)
