"""Level `full`: the stream retrained from its data in clean checkouts, with the recorded locks, and compared.

Each update by the code of its own commit, with its own lock and threads, going on from what the code of the commit
before made: as it was. Checkouts, store and MLflow lie in a temporary folder; nothing outside it is written.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from recall.audit_verdicts import BEFORE, Link
from recall.errors import Failed, OutOfReach
from tasks.audit_code import LOCK, repository_with
from tasks.audit_fetch import fetched
from tasks.audit_merge import other_machine
from tasks.audit_net import broken, sentence, tried
from tasks.audit_source import Registered
from tasks.data_objects import locate
from tasks.environment_lock import lock_differences
from tasks.refs import file_sha256, weights_sha256

NOT_SET = ("PREFECT", "MLFLOW", "PYTHONPATH", "RECALL_")
NODES = {"expert": "expert", "merged": "current"}  # in an audit, and in an update's record


class Doubt(NamedTuple):
    """Why nothing can be said of the updates from here on; `out_of_reach` as a link has it."""

    reason: str
    out_of_reach: bool


def check_retrained(chain: Sequence[Registered], work: Path) -> Iterator[Link]:
    """A verdict on every update's expert and merged model, retrained from the base model on.

    What follows an update that came out otherwise, or could not be retrained, starts from another model: unknown.
    """
    folder, doubt = work / "full", None
    folder.mkdir()
    for group in _groups(chain):
        reason = _cannot(group[0])
        if doubt is None and reason is not None:
            doubt = Doubt(reason, out_of_reach=False)
        if doubt is None:
            try:
                made = _retrain(group, folder, folder / f"from-{group[0].position}")
            except Exception as error:
                if (link := broken(group[0].position, "merged", "retrained", error)).status == "failed":
                    yield link
                doubt = Doubt(sentence(error), out_of_reach=link.out_of_reach)
        if doubt is not None:
            for update in group:
                yield update.link("merged", "retrained", "unknown", "the same weights", doubt.reason,
                                  out_of_reach=doubt.out_of_reach)  # fmt: skip
            doubt = _following(group[-1], "could not be retrained", doubt)
            continue
        for update in group:
            links = list(check_update(update, made.get(update.position, {}), doubt.reason if doubt else None, work))
            yield from links
            if doubt is None and any(link.status != "ok" for link in links):
                doubt = _following(update, "came out otherwise", None)


def check_update(update: Registered, made: dict[str, Path], doubt: str | None, work: Path) -> Iterator[Link]:
    """A verdict on one update's expert and merged model.

    Args:
        made: where they lie as retrained, in the store that made them.
        doubt: why what comes out otherwise proves nothing.
    """
    for node in NODES:
        # From the base model it is trained whatever the updates before made.
        apart = node == "expert" and update.lineage.expert.base == update.lineage.base_model.fingerprint
        name = f"{node} retrained"
        yield from tried(
            update.position, node, name, _compared, update, node, name, made.get(node), None if apart else doubt, work
        )


def interpreter(lock: Path, checkout: Path, folder: Path) -> Path:
    """A Python that has what `lock` pins: this one where it does, else that of a new environment in `folder`.

    Raises:
        Failed: the environment cannot be made.
    """
    if not lock_differences(lock.read_text(encoding="utf-8"), checkout / "pyproject.toml"):
        return Path(sys.executable)
    _done([sys.executable, "-m", "venv", str(folder)], checkout)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(lock)]
    if "torch==" in lock.read_text(encoding="utf-8"):
        _done([*pip, "torch"], checkout)  # first and alone, as `make setup` does it
    _done([*pip, "."], checkout)
    return python


def _groups(chain: Sequence[Registered]) -> list[list[Registered]]:
    """Updates that one checkout can make in one run: those that follow each other with the same code and threads."""

    def made_by(update: Registered) -> tuple[Any, ...]:
        lineage = update.lineage
        return lineage.git_commit, lineage.code, lineage.environment_lock_sha256, _threads(update), _cannot(update)

    return [list(group) for _, group in itertools.groupby(chain, made_by)]


def _following(update: Registered, what: str, before: Doubt | None) -> Doubt:
    if before is not None and before.reason.startswith("it starts from"):
        return before
    because = f": {before.reason}" if before else ""
    reason = f"it starts from update {update.position}, which {what}{because}"
    return Doubt(reason, out_of_reach=before.out_of_reach if before else False)


def _threads(update: Registered) -> int | None:
    threads = (update.lineage.merged.machine or {}).get("threads") or update.lineage.settings.get("threads")
    return int(threads) if threads else None


def _cannot(update: Registered) -> str | None:
    """Why the update cannot be retrained from what was recorded; None where it can."""
    lineage = update.lineage
    if lineage.code is None or lineage.base_model.path is None:
        return BEFORE
    if lineage.git_commit is None or lineage.code.git_commit is None:
        return "no Git commit was recorded"
    if not lineage.code.clean:
        return "the code had uncommitted changes when the version was made"
    folder = repository_with(lineage.git_commit)
    if lineage.code.git_commit != lineage.git_commit:
        return "the code lies in another repository than the project"
    if not (folder / ".git").exists():
        return f"commit {lineage.git_commit[:12]} is not in this repository"
    return None


def _retrain(group: Sequence[Registered], shared: Path, folder: Path) -> dict[int, dict[str, Path]]:
    """By update the folders of the expert and the merged model that the checkout's own `recall run` made.

    Store and MLflow in `shared` hold the updates before, which the run finds there as the first one did.
    """
    newest = group[-1]
    commit = newest.lineage.git_commit or ""
    checkout, lock = folder / "checkout", folder / LOCK
    folder.mkdir(parents=True)
    _done(["git", "clone", "--quiet", "--no-checkout", str(repository_with(commit)), str(checkout)], folder)
    _done(["git", "checkout", "--quiet", "--detach", commit], checkout)
    _bring_data(newest, checkout, shared / "data")
    shutil.copyfile(checkout / LOCK, lock)
    python = interpreter(lock, checkout, folder / "venv")
    settings = folder / "params.yaml"
    settings.write_text(yaml.safe_dump(_settings(newest, shared / "store")), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(NOT_SET)}
    environment |= {
        "PYTHONPATH": str(checkout),
        "PREFECT_HOME": str(folder / "prefect"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{shared / 'mlflow.db'}",
    }
    _done([str(python), "-m", "flows.cli", "run", "--config", str(settings), "--json"], checkout, environment)
    made: dict[int, dict[str, Path]] = {}
    for file in shared.glob("from-*/checkout/mlartifacts/**/update.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        models = record["models"]["recall"]
        made[record["position"]] = {
            node: shared / "store" / models[name]["kind"] / models[name]["fingerprint"] for node, name in NODES.items()
        }
    return made


def _bring_data(newest: Registered, checkout: Path, work: Path) -> None:
    """The base model and the data sets that an update was made from, at their recorded DVC hashes."""
    lineage = newest.lineage
    wanted = {lineage.base_model.path or "": lineage.base_model.dvc_hash}
    wanted |= {entry.path: entry.dvc_hash for entry in lineage.data_sets}
    for path, dvc_hash in wanted.items():
        if Path(path).is_absolute():
            raise OutOfReach(f"{path} lies outside the project, so that a checkout cannot have its own copy of it")
        target = checkout / path
        if not target.exists():
            shutil.copytree(locate(Path(path), dvc_hash, lineage.git_commit, work), target)


def _settings(newest: Registered, store: Path) -> dict[str, Any]:
    """As recorded; the stream ends with this update, no baseline runs, and the store is the audit's own."""
    settings = json.loads(json.dumps(newest.lineage.settings))
    settings["stream"]["learning_tasks"] = settings["stream"]["learning_tasks"][: newest.position]
    settings["baselines"] = []
    settings["store"] = str(store)
    settings["threads"] = _threads(newest)
    return dict(settings)


def _compared(
    update: Registered, node: str, name: str, found: Path | None, doubt: str | None, work: Path
) -> Iterator[Link]:
    entry = update.lineage.expert if node == "expert" else update.lineage.merged
    wanted = weights_sha256({file: digest.sha256 for file, digest in (entry.files or {}).items()})
    expected = f"weights with SHA-256 {wanted}"
    if found is None:
        raise Failed(f"the recorded code made no update {update.position}")
    sha256 = weights_sha256({file.name: file_sha256(file) for file in found.glob("*.safetensors")})
    if sha256 == wanted:
        yield update.link(node, name, "ok", expected, "bit-identical")
        return
    words = f"SHA-256 {sha256}; {_distance(update, node, found, work)}"
    here = json.loads((found / "manifest.json").read_text(encoding="utf-8"))["environment"]
    other = other_machine(entry.machine, here)
    if doubt is None and other is None:
        yield update.link(node, name, "failed", expected, f"{words}, on the same kind of machine")
        return
    # Training multiplies the last bit: how far another machine may come out is not known, so this proves nothing.
    because = doubt or f"another machine trains otherwise ({other})"
    yield update.link(node, name, "unknown", expected, f"{words}; {because}")


def _distance(update: Registered, node: str, found: Path, work: Path) -> str:
    """How far the retrained weights are from what MLflow has, in words."""
    from recall.remaking import model_difference

    try:
        with fetched(update, work) as there:
            difference = model_difference(found, there.folder / "expert" if node == "expert" else there.model)
    except Exception as error:
        return f"by how much cannot be said, as MLflow's copy cannot be read ({sentence(error)})"
    return (
        f"largest difference {difference.absolute:.3g}, {difference.relative:.3g} of the largest value in "
        f"{difference.where}"
    )


def _done(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise OutOfReach(f"`{' '.join(command[:4])}` in the checkout failed: {said[-1] if said else done.returncode}")
