"""Level `merge`: all between expert and merged model made again from the registry's own copies, and compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from recall.audit_verdicts import Link
from recall.errors import Failed
from recall.learning_tasks import json_lines
from recall.lineage import ArtifactEntry
from recall.merge_settings import MOMENTS_FILE
from recall.settings import RepresentationSettings, WeightingSettings
from tasks.audit_fetch import Fetched, fetched
from tasks.audit_moments import earlier_moments, model_again, moments_again
from tasks.audit_net import tried
from tasks.audit_source import Registered
from tasks.data_objects import locate
from tasks.refs import file_sha256

if TYPE_CHECKING:
    from recall.checkpoints import Checkpoint
    from recall.remaking import Difference
    from recall.results import MergeWeights

# What another kind of CPU may change, relative to the largest value: one step of bfloat16 is 2^-8 of a number.
TOLERANCE = 1e-2
MACHINE = ("cpu_model", "cpu", "threads", "torch", "transformers", "cuda", "dtype")


def check_merges(chain: Sequence[Registered], work: Path) -> Iterator[Link]:
    """For each update of the chain: a verdict on every representation, on weights, moments and the merged model."""
    for update in chain:
        if update.lineage.pool is None:
            yield update.unrecorded("merged", "merge made again", "the same model")
        else:
            yield from tried(update.position, "merged", "merge made again", _again, chain, update, work)


def other_machine(recorded: dict[str, Any] | None, here: dict[str, Any]) -> str | None:
    """How the machine where something was made again differs from where it was made, in words; None where it does not.

    Both as manifests have them: `tasks.machine.environment`, and the number of threads.
    """
    if recorded is None:
        return "the machine was not recorded"
    # Records from before the type was one of their fields say nothing against this machine's.
    recorded = {"dtype": here.get("dtype")} | recorded
    changes = [
        f"{name} {here.get(name)}, not {recorded.get(name)}" for name in MACHINE if here.get(name) != recorded.get(name)
    ]
    return "; ".join(changes) or None


def _again(chain: Sequence[Registered], update: Registered, work: Path) -> Iterator[Link]:
    """The files of the updates that this merge takes are here only as long as it lasts."""
    with ExitStack() as stack:
        here: dict[int, Fetched] = {}

        def fetch(wanted: Registered) -> Fetched:
            if wanted.position not in here:
                here[wanted.position] = stack.enter_context(fetched(wanted, work))
            return here[wanted.position]

        members = [_checkpoint(chain, entry.fingerprint, fetch, work) for entry in update.lineage.pool or []]
        copies = Path(stack.enter_context(TemporaryDirectory(dir=work)))
        yield from _made_again(fetch(update), members, earlier_moments(chain, update, copies), work)


def _checkpoint(
    chain: Sequence[Registered], fingerprint: str, fetch: Callable[[Registered], Fetched], work: Path
) -> Checkpoint:
    """The model that the chain has under a fingerprint: the base under DVC, all others out of the registry."""
    from recall.checkpoints import Checkpoint

    for update in chain:
        lineage = update.lineage
        if fingerprint == lineage.base_model.fingerprint and lineage.base_model.path:
            base = lineage.base_model
            return Checkpoint(locate(Path(base.path or ""), base.dvc_hash, lineage.git_commit, work))
        if fingerprint == lineage.merged.fingerprint:
            return Checkpoint(fetch(update).model)
        if fingerprint == lineage.expert.fingerprint:
            under = lineage.expert.base
            base_model = _checkpoint(chain, under, fetch, work) if under else None
            return Checkpoint(fetch(update).folder / "expert", base_model)
    raise Failed(f"no update of the chain made a model with fingerprint {fingerprint[:12]}")


def _made_again(update: Fetched, members: list[Checkpoint], moments: dict[str, Path], work: Path) -> Iterator[Link]:
    """`moments`: see `earlier_moments`."""
    import torch

    from recall.remaking import remake_model
    from tasks.machine import environment

    lineage = update.lineage
    threads = int((lineage.merged.machine or {}).get("threads") or torch.get_num_threads())
    torch.set_num_threads(threads)
    machine = environment() | {"threads": threads}
    prompts = [json.loads(line)["prompt"] for line in json_lines(update.folder / "samples.jsonl")]
    record = yield from _weights_again(update, members, prompts, machine)
    with TemporaryDirectory(dir=work) as made, TemporaryDirectory(dir=work) as kept:
        if lineage.moments:
            difference = moments_again(update, members[-1], prompts, Path(kept))
            where = other_machine(lineage.moments.machine, machine)
            yield _compared(update, "moments", "moments made again", difference, where)
            moments = moments | {lineage.moments.fingerprint: Path(kept) / MOMENTS_FILE}
        if lineage.moments and lineage.previous:
            model_again(update, members, record, moments, Path(made))
        else:
            remake_model(members, record, Path(made))
        entries = [lineage.merged, *(lineage.representations or []), *([lineage.moments] if lineage.moments else [])]
        yield _model_compared(update, Path(made), _other_of(entries, machine))


def _weights_again(
    update: Fetched, members: list[Checkpoint], prompts: list[str], machine: dict[str, Any]
) -> Generator[Link, None, MergeWeights]:
    """Yields the verdicts on representations and weights; returns the weights."""
    import numpy as np

    from recall import remaking, remaking_moments

    lineage = update.lineage
    names = [entry.name for entry in lineage.pool or []]
    other = other_machine(lineage.merged.machine, machine)
    if lineage.moments and not lineage.previous:
        record = remaking_moments.remake_first_weights(members, names)
    else:
        weighting = WeightingSettings.model_validate(lineage.settings["weighting"])
        settings = RepresentationSettings.model_validate(lineage.settings["representations"])
        made = remaking.remake_representations(members, prompts, settings, weighting.granularity == "module")
        recorded_on = [entry.machine for entry in lineage.representations or []]
        for number, (name, found) in enumerate(zip(names, made, strict=True)):
            file = update.folder / "representations" / str(number) / "representations.npy"
            difference = remaking.array_difference(found, np.load(file, allow_pickle=False))
            where = other_machine(recorded_on[number], machine) if number < len(recorded_on) else other
            yield _compared(update, "representations", f"representations of {name} made again", difference, where)
        record = remaking.remake_weights(members, names, made, weighting)
    recorded = remaking.read_weights(update.folder / "weights.json")
    other = _other_of([lineage.merged, *(lineage.representations or [])], machine)
    yield _compared(update, "weights", "weights made again", remaking.weights_difference(record, recorded), other)
    return record


def _other_of(entries: Sequence[ArtifactEntry], machine: dict[str, Any]) -> str | None:
    """As `other_machine`, of what was made from all of `entries`, one of which another machine may have made."""
    return next((found for entry in entries if (found := other_machine(entry.machine, machine))), None)


def _model_compared(update: Fetched, made: Path, other: str | None) -> Link:
    from recall import remaking

    difference = remaking.model_difference(made, update.model)
    same = all(file_sha256(file) == file_sha256(update.model / file.name) for file in made.glob("*.safetensors"))
    if difference.absolute == 0 and not same:
        difference = remaking.Difference(absolute=float("inf"), relative=float("inf"), where="the files' headers")
    return _compared(update, "merged", "merged model made again", difference, other)


def _compared(update: Fetched, node: str, name: str, difference: Difference, other: str | None) -> Link:
    expected = "bit-identical to what is registered"
    if difference.absolute == 0:
        return update.link(node, name, "ok", expected, "bit-identical")
    where = f" in {difference.where}" if difference.where else ""
    found = f"largest difference {difference.absolute:.3g}, {difference.relative:.3g} of the largest value{where}"
    if other is None:
        return update.link(node, name, "failed", expected, f"{found}, on the same kind of machine")
    held = difference.relative <= TOLERANCE
    found += f"; {'within' if held else 'beyond'} the {TOLERANCE} that another machine may cause ({other})"
    return update.link(node, name, "ok" if held else "failed", expected, found)
