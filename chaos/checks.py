"""What must hold once a broken run was run again: nothing lost, nothing twice, nothing half-made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import ViewType

from chaos.bench import Victim
from tasks.store import Store

KINDS = ("datasets", "experts", "samples", "representations", "weights", "merged", "scores")


def problems(broken: Victim, undisturbed: Victim) -> list[str]:
    """Every way in which `broken` differs from the undisturbed run, or left something behind; empty if it survived."""
    return [*_store(broken, undisturbed), *_registry(broken, undisturbed), *_report(broken, undisturbed)]


def _store(broken: Victim, undisturbed: Victim) -> Iterator[str]:
    store = Store(root=broken.folder / ".store")
    found, expected = artifacts(store), artifacts(Store(root=undisturbed.folder / ".store"))
    for kind, name in expected.keys() | found.keys():
        if found.get((kind, name)) != expected.get((kind, name)):
            yield f"{kind}/{name[:8]} is {found.get((kind, name))}, not {expected.get((kind, name))}"
    for kind, name in found:
        damage = store.damage(kind, name)
        if damage:
            yield damage
    half = [str(path.relative_to(store.root)) for path in store.root.glob("*/.*")]
    half += [f"work/{path.name}" for path in (store.root / "work").glob("*")]
    half += [path.name for path in store.root.glob(".*")]
    yield from (f"half-made: {path}" for path in half)


def artifacts(store: Store) -> dict[tuple[str, str], str | None]:
    """Kind and fingerprint to the digest of the files, None where an artifact has no manifest."""
    folders = [(kind, path.name) for kind in KINDS for path in (store.root / kind).glob("[!.]*")]
    return {(kind, name): (store.manifest(kind, name) or {}).get("sha256") for kind, name in folders}


def _registry(broken: Victim, undisturbed: Victim) -> Iterator[str]:
    found, expected = Registered(broken), Registered(undisturbed)
    if found.versions != expected.versions:
        yield f"registered versions are {found.versions}, not {expected.versions}"
    if found.aliases != expected.aliases:
        yield f"aliases are {found.aliases}, not {expected.aliases}"
    yield from (f"MLflow run {run} is {status}" for run, status in found.unfinished)
    if found.models != expected.models:
        yield f"logged models are {dict(found.models)}, not {dict(expected.models)}"
    if found.strays:
        yield f"model files that no logged model has: {found.strays}"


class Registered:
    """What MLflow holds of the stream."""

    def __init__(self, victim: Victim) -> None:
        uri = victim.project.environment.get("MLFLOW_TRACKING_URI", f"sqlite:///{victim.folder / 'mlflow.db'}")
        client = MlflowClient(uri, uri)
        versions = client.search_model_versions(f"name = '{victim.stream}'")
        # An update's number and its weights: one entry a version, so a second version of one update shows.
        self.versions = sorted((v.tags["recall.position"], v.tags["recall.weights_sha256"]) for v in versions)
        position = {str(v.version): v.tags["recall.position"] for v in versions}
        aliases = client.get_registered_model(victim.stream).aliases
        self.aliases = {alias: position[str(version)] for alias, version in aliases.items()}
        experiment = client.get_experiment_by_name(victim.stream).experiment_id
        runs = client.search_runs([experiment], run_view_type=ViewType.ALL)
        self.unfinished = [(r.info.run_id, r.info.status) for r in runs if r.info.status != "FINISHED"]
        models = client.search_logged_models([experiment])
        self.models = Counter(str(model.status) for model in models)
        files = victim.folder / "mlartifacts" / "models"
        known = {model.model_id for model in models}
        self.strays = sorted(path.name for path in files.glob("*") if path.name not in known and any(path.rglob("*.*")))


def _report(broken: Victim, undisturbed: Victim) -> Iterator[str]:
    found, expected = scores(broken.folder), scores(undisturbed.folder)
    if found != expected:
        yield f"reports/result.json has the scores {found}, not {expected}"


def scores(folder: Path) -> Any:
    """The matrix R of every method, as the report's JSON has it."""
    file = folder / "reports" / "result.json"
    return json.loads(file.read_text())["methods"] if file.exists() else None
