"""Small text files that are either whole or not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from recall.errors import Failed


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 beside `path`, bring it to the disk, rename it: a reader sees the old file or the new.

    Raises:
        Failed: the folder cannot be made or the file not written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise Failed(f"{path} cannot be written ({error.strerror}); free its disk or name another folder") from error
    finally:
        with suppress(OSError):
            partial.unlink()
