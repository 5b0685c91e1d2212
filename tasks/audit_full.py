"""Level `full`: the stream retrained from its data in a clean checkout, with the recorded lock, and compared.

The checkout, its store and its MLflow lie in a temporary folder; nothing outside it is written.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from recall.audit_verdicts import BEFORE, Link
from recall.errors import BadInput, Failed, one_line
from tasks.audit_code import LOCK, repository_with
from tasks.audit_merge import other_machine
from tasks.audit_source import Registered
from tasks.data_objects import locate
from tasks.environment_lock import lock_differences
from tasks.refs import digest, file_sha256

NOT_SET = ("PREFECT", "MLFLOW", "PYTHONPATH", "RECALL_")


def check_retrained(chain: Sequence[Registered], work: Path) -> Iterator[Link]:
    """A verdict on every update's expert and merged model, retrained from the base model on."""
    newest = chain[-1]
    reason = _cannot(newest)
    if reason:
        yield _link(newest, "merged", "retrained", "unknown", "the same weights", reason)
        return
    try:
        made = _retrain(chain, work / "full")
    except (BadInput, Failed, OSError) as error:
        yield _link(newest, "merged", "retrained", "failed", "that it can be retrained", one_line(error))
        return
    other = other_machine(newest.lineage.merged.machine)
    for update in chain:
        models = made[update.position]
        yield _compared(update, "expert", models["expert"], update.folder / "expert", other)
        yield _compared(update, "merged", models["current"], update.model, other)


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


def _retrain(chain: Sequence[Registered], folder: Path) -> dict[int, dict[str, Path]]:
    """By update the folders of the expert and the merged model that the checkout's own `recall run` made."""
    newest = chain[-1].lineage
    commit = newest.git_commit or ""
    checkout, lock = folder / "checkout", folder / LOCK
    folder.mkdir(parents=True)
    origin = repository_with(commit)
    _done(["git", "clone", "--quiet", "--no-checkout", str(origin), str(checkout)], folder)
    _done(["git", "checkout", "--quiet", "--detach", commit], checkout)
    _bring_data(chain, checkout, folder)
    shutil.copyfile(checkout / LOCK, lock)
    python = interpreter(lock, checkout, folder / "venv")
    settings = folder / "params.yaml"
    settings.write_text(yaml.safe_dump(_settings(chain, folder)), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(NOT_SET)}
    environment |= {
        "PYTHONPATH": str(checkout),
        "PREFECT_HOME": str(folder / "prefect"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }
    _done([str(python), "-m", "flows.cli", "run", "--config", str(settings), "--json"], checkout, environment)
    made: dict[int, dict[str, Path]] = {}
    for file in (checkout / "mlartifacts").rglob("update.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        models = record["models"]["recall"]
        folders = {
            name: folder / "store" / models[name]["kind"] / models[name]["fingerprint"]
            for name in ("expert", "current")
        }
        made[record["position"]] = folders
    return made


def _bring_data(chain: Sequence[Registered], checkout: Path, folder: Path) -> None:
    """The base model and the data sets that the newest update was made from, at their recorded DVC hashes."""
    lineage = chain[-1].lineage
    wanted = {lineage.base_model.path or "": lineage.base_model.dvc_hash}
    wanted |= {entry.path: entry.dvc_hash for entry in lineage.data_sets}
    for path, dvc_hash in wanted.items():
        if Path(path).is_absolute():
            raise Failed(f"{path} lies outside the project, so that a checkout cannot have its own copy of it")
        target = checkout / path
        if not target.exists():
            shutil.copytree(locate(Path(path), dvc_hash, lineage.git_commit, folder / "data"), target)


def _settings(chain: Sequence[Registered], folder: Path) -> dict[str, Any]:
    """As recorded; the stream ends with this update, no baseline runs, and the store is the audit's own."""
    lineage = chain[-1].lineage
    settings = json.loads(json.dumps(lineage.settings))
    settings["stream"]["learning_tasks"] = settings["stream"]["learning_tasks"][: chain[-1].position]
    settings["baselines"] = []
    settings["store"] = str(folder / "store")
    settings["threads"] = int((lineage.merged.machine or {}).get("threads") or settings["threads"])
    return dict(settings)


def _compared(update: Registered, node: str, found: Path, expected: Path, other: str | None) -> Link:
    from recall.remaking import model_difference

    name = f"{node} retrained"
    wanted = f"weights with SHA-256 {_weights_sha256(expected)}"
    if (sha256 := _weights_sha256(found)) == _weights_sha256(expected):
        return _link(update, node, name, "ok", wanted, "bit-identical")
    difference = model_difference(found, expected)
    words = (
        f"SHA-256 {sha256}; largest difference {difference.absolute:.3g}, {difference.relative:.3g} of the largest "
        f"value in {difference.where}"
    )
    if other is None:
        return _link(update, node, name, "failed", wanted, f"{words}, on the same kind of machine")
    # Training multiplies the last bit: how far another machine may come out is not known, so this proves nothing.
    return _link(update, node, name, "unknown", wanted, f"{words}; another machine trains otherwise ({other})")


def _weights_sha256(folder: Path) -> str:
    from recall.tensor_files import weight_files

    shards = {file.name: file_sha256(file) for file in weight_files(folder)}
    return next(iter(shards.values())) if len(shards) == 1 else digest(shards)


def _done(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failed(f"`{' '.join(command[:4])}` in the checkout failed: {said[-1] if said else done.returncode}")


def _link(update: Registered, node: str, name: str, status: str, expected: str, found: str) -> Link:
    fields = {"update": update.position, "node": node, "name": name, "status": status}
    return Link.model_validate(fields | {"expected": expected, "found": found})
