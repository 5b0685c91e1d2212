"""All that can be checked before the first training step, so that bad input costs seconds and leaves nothing behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recall.checkpoints import check_checkpoint
from recall.errors import BadInput
from recall.learning_tasks import check_learning_task
from recall.settings import Settings
from tasks import data_versions, registry
from tasks.store import Store


@dataclass(frozen=True)
class Inputs:
    """The DVC hash of the base model and of every data set, and where Git stood when they were read."""

    base_hash: str
    data_hashes: dict[str, str]
    git_commit: str | None
    draft_reasons: tuple[str, ...]


def check_inputs(settings: Settings, take_in: list[str]) -> Inputs:
    """Check the base model, every data set, the store and MLflow; take in the data sets named in `take_in`.

    Raises:
        BadInput: anything that would make the run fail or mislead, in one sentence.
    """
    names = [*settings.stream.learning_tasks, *settings.stream.unseen]
    for name in take_in:
        if name not in names:
            raise BadInput(f"--take-in {name}: the stream has no such data set; it has {', '.join(names)}")
    data_versions.ensure_present(settings.base_folder)
    check_checkpoint(settings.base_folder)
    for name in names:
        folder = settings.task_folder(name)
        data_versions.ensure_present(folder)
        check_learning_task(
            name, folder, settings.learning_tasks[name], trained_on=name in settings.stream.learning_tasks
        )
    _check_samples(settings)
    base_hash = _checked_hash(settings.base_folder, take_in=False)
    data_hashes = {name: _checked_hash(settings.task_folder(name), take_in=name in take_in) for name in names}
    commit, clean = data_versions.git_commit()
    reasons = []
    if commit is None or not clean:
        reasons.append("the Git tree has uncommitted changes" if commit else "there is no Git commit")
    unpushed = [name for name in names if not data_versions.is_pushed(settings.task_folder(name))]
    if unpushed:
        reasons.append(f"not pushed to the DVC remote: {', '.join(unpushed)}")
    # Last, because these two make files.
    Store(root=settings.store).check_writable()
    registry.client()
    return Inputs(base_hash, data_hashes, commit, tuple(reasons))


def _checked_hash(path: Path, take_in: bool) -> str:
    if take_in:
        data_versions.take_in(path)
    data_versions.check_clean(path)
    return data_versions.tracked_hash(path)


def _check_samples(settings: Settings) -> None:
    for name in settings.stream.learning_tasks:
        lines = (settings.task_folder(name) / "train.jsonl").read_text(encoding="utf-8").splitlines()
        samples = min(len(lines), settings.sampling.candidates or len(lines))
        if samples < settings.sampling.clusters:
            raise BadInput(
                f"learning task {name} gives {samples} samples to choose from, fewer than sampling.clusters "
                f"({settings.sampling.clusters}); lower that, or give more rows"
            )
