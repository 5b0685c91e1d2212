"""Level `merge` where a merge goes by moments: those of earlier experts out of MLflow, the expert's own made again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recall.errors import Failed
from recall.merge_settings import MOMENTS_FILE, MergingSettings
from recall.settings import RepresentationSettings
from tasks.audit_fetch import Fetched, run_part
from tasks.audit_source import Registered

if TYPE_CHECKING:
    from recall.checkpoints import Checkpoint
    from recall.remaking import Difference
    from recall.results import MergeWeights


def earlier_moments(chain: Sequence[Registered], update: Registered, work: Path) -> dict[str, Path]:
    """By fingerprint the files that an update's merge went by, but for its own expert's.

    What had to be copied lies in `work`.

    Raises:
        Failed: no update of the chain made some of them.
        OutOfReach: MLflow's artifacts cannot be reached.
    """
    made = {other.lineage.moments.fingerprint: other for other in chain if other.lineage.moments}
    found = {}
    for name in [one for entry in update.lineage.pool or [] for one in entry.moments]:
        if name not in made:
            raise Failed(f"no update of the chain made the moments with fingerprint {name[:12]}")
        if made[name] is not update:
            file = run_part(made[name], "moments", work / f"moments-{made[name].position}") / MOMENTS_FILE
            if not file.is_file():
                raise Failed(f"MLflow does not have the moments of update {made[name].position}")
            found[name] = file
    return found


def moments_again(update: Fetched, expert: Checkpoint, prompts: list[str], folder: Path) -> Difference:
    """Make the expert's moments again in `folder`; returns how far they are from those that MLflow has."""
    from recall.remaking_moments import moments_difference, remake_moments

    settings = update.lineage.settings
    reads = RepresentationSettings.model_validate(settings["representations"])
    merging = MergingSettings.model_validate(settings["merging"])
    remake_moments(expert, prompts, reads, merging, folder / MOMENTS_FILE)
    return moments_difference(folder / MOMENTS_FILE, update.folder / "moments" / MOMENTS_FILE)


def model_again(
    update: Fetched, members: list[Checkpoint], record: MergeWeights, files: dict[str, Path], out: Path
) -> None:
    """The merge by moments again; `files` has those of every expert by fingerprint."""
    from recall.remaking_moments import remake_by_moments

    groups = [[files[name] for name in entry.moments] for entry in update.lineage.pool or []]
    settings = MergingSettings.model_validate(update.lineage.settings["merging"])
    remake_by_moments(members, record, groups, settings, out)
