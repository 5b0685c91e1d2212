"""Stage 1, dataset versioning: rows are checked and copied to the store under the hash that DVC tracks them by."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from recall.errors import BadInput
from recall.learning_tasks import SPLITS, Split, TaskSpec, check_learning_task, read_rows
from tasks.data_versions import working_hash
from tasks.refs import CheckpointRef, DatasetRef, TrackedFolder, digest, file_sha256
from tasks.stage import Job, stage


@stage(kind="datasets", ref=DatasetRef, on_workers=False)
def version_dataset(job: Job, name: str, tracked: TrackedFolder, spec: TaskSpec, trained_on: bool) -> dict[str, Any]:
    """Take in the data set that DVC tracks; later edits of the working copy reach no stage."""
    shutil.copytree(tracked.path, job.out, dirs_exist_ok=True)
    if working_hash(job.out) != tracked.fingerprint:
        raise BadInput(f"{tracked.path} was changed while the run began; undo that, or run again with --take-in {name}")
    check_learning_task(name, job.out, spec, trained_on)
    splits = {split: _split(name, split, job.out, spec) for split in SPLITS if (job.out / f"{split}.jsonl").is_file()}
    return {
        "learning_task": name,
        "dvc_hash": tracked.fingerprint,
        "train": splits["train"] if trained_on else None,
        "validation": splits.get("validation"),
        "test": splits["test"],
    }


def version_base(folder: Path, dvc_hash: str) -> CheckpointRef:
    """M_0 as DVC tracks it; it is read where it lies, so nothing is copied and nothing cached."""
    return CheckpointRef(
        kind="base_model", fingerprint=digest({"base_model": dvc_hash}), path=folder.resolve(), sha256=dvc_hash
    )


def _split(name: str, split: Split, folder: Path, spec: TaskSpec) -> dict[str, Any]:
    file = folder / f"{split}.jsonl"
    answers = {"kind": spec.kind, "metric": spec.metric, "labels": spec.labels}
    return {
        "fingerprint": digest({"rows": file_sha256(file), **answers}),
        "path": file.name,
        "learning_task": name,
        "spec": spec.model_dump(mode="json"),
        "rows": len(read_rows(file, spec)),
    }
