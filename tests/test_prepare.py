"""What a data stage says when its folder cannot be made: whose fault it was, and nothing about the disk if not its."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from recall.errors import Failed
from recall.prepare import new_folder


def test_a_full_disk_is_named_with_what_to_check(
    tmp_path: Path, files_of_at_most: Callable[[int], AbstractContextManager[None]]
) -> None:
    refused = pytest.raises(
        Failed, match=r"reviews was not made \(File too large\); check the disk and its permissions$"
    )
    with refused, files_of_at_most(10), new_folder(tmp_path / "reviews") as folder:
        (folder / "train.jsonl").write_text("more than ten bytes")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(), "ConnectionResetError"),
        (ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)), "Connection reset by peer"),
        (OSError("the tokenizer\ncannot be read"), "the tokenizer cannot be read"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.whl"), "a.whl: No such file or directory"),
    ],
)
def test_an_error_of_the_work_is_told_as_it_is_and_not_as_the_disks(
    tmp_path: Path, error: OSError, reason: str
) -> None:
    with pytest.raises(Failed) as failed, new_folder(tmp_path / "reviews"):
        raise error
    assert str(failed.value) == f"{tmp_path / 'reviews'} was not made ({reason})"
