"""Level `merge`: representations, weights and merged models made again from the registry's own copies, and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from recall.audit_verdicts import BEFORE, Link
from recall.errors import BadInput, Failed, one_line
from recall.learning_tasks import json_lines
from recall.settings import RepresentationSettings, WeightingSettings
from tasks.audit_source import Registered
from tasks.data_objects import locate
from tasks.refs import file_sha256

if TYPE_CHECKING:
    from recall.checkpoints import Checkpoint
    from recall.remaking import Difference

# What another kind of CPU may change, relative to the largest value: one step of bfloat16 is 2^-8 of a number.
TOLERANCE = 1e-2
MACHINE = ("cpu_model", "cpu", "threads", "torch", "transformers", "cuda")


def check_merges(chain: Sequence[Registered], work: Path) -> Iterator[Link]:
    """For each update of the chain: a verdict on every representation, on the weights and on the merged model."""
    for update in chain:
        if update.lineage.pool is None:
            yield _link(update, "merged", "merge made again", "unknown", "the same model", BEFORE)
            continue
        try:
            members = [_checkpoint(chain, entry.fingerprint, work) for entry in update.lineage.pool]
            yield from _made_again(update, members, work)
        except (BadInput, Failed, OSError, ValueError) as error:
            yield _link(update, "merged", "merge made again", "failed", "that it can be made", one_line(error))


def other_machine(recorded: dict[str, Any] | None) -> str | None:
    """How this machine differs from the one where something was made, in words; None where it does not."""
    from tasks.stage import environment

    if recorded is None:
        return "the machine was not recorded"
    here = environment()
    changes = [
        f"{name} {here.get(name)}, not {recorded.get(name)}" for name in MACHINE if here.get(name) != recorded.get(name)
    ]
    return "; ".join(changes) or None


def _checkpoint(chain: Sequence[Registered], fingerprint: str, work: Path) -> Checkpoint:
    """The model that the chain has under a fingerprint: the base under DVC, all others out of the registry."""
    from recall.checkpoints import Checkpoint

    for update in chain:
        lineage = update.lineage
        if fingerprint == lineage.base_model.fingerprint and lineage.base_model.path:
            base = lineage.base_model
            return Checkpoint(locate(Path(base.path or ""), base.dvc_hash, lineage.git_commit, work))
        if fingerprint == lineage.merged.fingerprint:
            return Checkpoint(update.model)
        if fingerprint == lineage.expert.fingerprint:
            under = lineage.expert.base
            return Checkpoint(update.folder / "expert", _checkpoint(chain, under, work) if under else None)
    raise Failed(f"no update of the chain made a model with fingerprint {fingerprint[:12]}")


def _made_again(update: Registered, members: list[Checkpoint], work: Path) -> Iterator[Link]:
    import numpy as np
    import torch

    from recall import remaking

    lineage = update.lineage
    machine = lineage.merged.machine or {}
    torch.set_num_threads(int(machine.get("threads") or torch.get_num_threads()))
    other = other_machine(lineage.merged.machine)
    weighting = WeightingSettings.model_validate(lineage.settings["weighting"])
    prompts = [json.loads(line)["prompt"] for line in json_lines(update.folder / "samples.jsonl")]
    settings = RepresentationSettings.model_validate(lineage.settings["representations"])
    made = remaking.remake_representations(members, prompts, settings, weighting.granularity == "module")
    names = [entry.name for entry in lineage.pool or []]
    for number, (name, found) in enumerate(zip(names, made, strict=True)):
        file = update.folder / "representations" / str(number) / "representations.npy"
        difference = remaking.array_difference(found, np.load(file, allow_pickle=False))
        yield _compared(update, "representations", f"representations of {name} made again", difference, other)
    record = remaking.remake_weights(members, names, made, weighting)
    recorded = remaking.read_weights(update.folder / "weights.json")
    yield _compared(update, "weights", "weights made again", remaking.weights_difference(record, recorded), other)
    with TemporaryDirectory(dir=work) as out:
        remaking.remake_model(members, record, Path(out))
        difference = remaking.model_difference(Path(out), update.model)
        shards = sorted(Path(out).glob("*.safetensors"))
        same = all(file_sha256(file) == file_sha256(update.model / file.name) for file in shards)
        if difference.absolute == 0 and not same:
            difference = remaking.Difference(absolute=float("inf"), relative=float("inf"), where="the files' headers")
        yield _compared(update, "merged", "merged model made again", difference, other)


def _compared(update: Registered, node: str, name: str, difference: Difference, other: str | None) -> Link:
    expected = "bit-identical to what is registered"
    if difference.absolute == 0:
        return _link(update, node, name, "ok", expected, "bit-identical")
    where = f" in {difference.where}" if difference.where else ""
    found = f"largest difference {difference.absolute:.3g}, {difference.relative:.3g} of the largest value{where}"
    if other is None:
        return _link(update, node, name, "failed", expected, f"{found}, on the same kind of machine")
    held = difference.relative <= TOLERANCE
    found += f"; {'within' if held else 'beyond'} the {TOLERANCE} that another machine may cause ({other})"
    return _link(update, node, name, "ok" if held else "failed", expected, found)


def _link(update: Registered, node: str, name: str, status: str, expected: str, found: str) -> Link:
    fields = {"update": update.position, "node": node, "name": name, "status": status}
    return Link.model_validate(fields | {"expected": expected, "found": found})
