"""What the registry holds of one version and of every update before it: the only thing that an audit starts from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recall.audit_verdicts import BEFORE, Link
from recall.errors import BadInput, Failed, one_line
from recall.lineage import Lineage, read_lineage
from tasks import registry
from tasks.refs import file_sha256

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

AUDIT = "recall.audit"


@dataclass(frozen=True)
class Registered:
    """One update as the registry has it: its run's files in `folder`, the model as registered in `registered`.

    Both are to be read only; what is missing there is missing in MLflow. `version` is None where it was deleted, and
    only the run is left.
    """

    number: str
    run_id: str
    version: ModelVersion | None
    lineage: Lineage
    position: int
    folder: Path
    registered: Path

    @property
    def model(self) -> Path:
        """The merged model's folder, where MLflow's flavour has it."""
        return self.registered / "model"

    @property
    def tags(self) -> dict[str, str]:
        """Of the version."""
        return dict(self.version.tags) if self.version else {}


def find_version(uri: str) -> tuple[str, str]:
    """(registered model, version) of `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        BadInput: it is no such URI, or the registry has no such version.
    """
    from mlflow.exceptions import MlflowException

    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/([0-9]+))", uri)
    if found is None:
        raise BadInput(f"{uri} names no registered version; write models:/NAME@champion or models:/NAME/7")
    name, alias, number = found.groups()
    try:
        if alias:
            number = registry.client().get_model_version_by_alias(name, alias).version
        return name, str(registry.client().get_model_version(name, str(number)).version)
    except MlflowException as error:
        raise BadInput(f"{uri} is not in the registry ({one_line(error)}); `recall status` shows what is") from error


def read_chain(stream: str, number: str, work: Path, depth: int | None = None) -> tuple[list[Registered], list[Link]]:
    """The version's update and all before it, oldest first, and a verdict on what ties each to the next.

    Args:
        depth: so many updates at most.

    Raises:
        Failed: the newest version has no lineage that can be read.
    """
    version = registry.version(stream, number)
    own = _fetch(stream, number, version.tags[registry.RUN], work)
    links = [_lineage_link(own, own.tags.get(registry.LINEAGE), stream)]
    chain = [own]
    while (before := chain[0].lineage.previous) is not None and len(chain) != depth:
        try:
            found = _fetch(stream, before.version, before.run_id, work)
        except Failed as error:
            here = chain[0].position - 1
            links.append(_link(here, "lineage.json", "failed", "the lineage of the update before", str(error)))
            return chain, links
        links.append(_lineage_link(found, before.lineage_sha256, stream))
        if found.position != chain[0].position - 1:
            wanted, said = f"update {chain[0].position - 1} before", f"update {found.position}"
            links.append(_link(chain[0].position, "lineage.json", "failed", wanted, said))
            return chain, links
        chain.insert(0, found)
    first = chain[0]
    if first.lineage.format == 1 and first.position > 1:
        links.append(_link(first.position - 1, "lineage.json", "unknown", "the update before", BEFORE))
    return chain, links


def metrics(run_id: str) -> dict[str, float]:
    """What MLflow's database says of a run now."""
    return dict(registry.client().get_run(run_id).data.metrics)


def set_verdict(stream: str, number: str, verdict: str) -> None:
    """Mark the version; promotion refuses one whose mark begins with `failed`."""
    registry.client().set_model_version_tag(stream, number, AUDIT, verdict[:5000])


def _lineage_link(found: Registered, expected: str | None, stream: str) -> Link:
    """Is `lineage.json` the file that the version's tag, or the next update's lineage, names?"""
    if expected is None:
        return _link(found.position, "lineage.json", "unknown", "the SHA-256 that was registered", BEFORE)
    actual = file_sha256(found.folder / "lineage.json")
    if actual == expected:
        return _link(found.position, "lineage.json", "ok", f"SHA-256 {expected}", f"SHA-256 {actual}")
    twin = [v.version for v in registry.versions(stream, {registry.LINEAGE: actual}) if str(v.version) != found.number]
    whose = f", which is that of version {twin[0]}" if twin else ""
    return _link(found.position, "lineage.json", "failed", f"SHA-256 {expected}", f"SHA-256 {actual}{whose}")


def _link(position: int, name: str, status: str, expected: str, found: str) -> Link:
    return Link.model_validate(
        {"update": position, "node": "lineage", "name": name, "status": status, "expected": expected, "found": found}
    )


def _fetch(stream: str, number: str, run_id: str, work: Path) -> Registered:
    """A run's files, and the registered model's: where they are, or copied to `work` from a store that is elsewhere."""
    from mlflow.exceptions import MlflowException

    try:
        folder = _local(registry.client().get_run(run_id).info.artifact_uri)
        if folder is None:
            folder = work / f"run-{run_id}"
            folder.mkdir(exist_ok=True)
            for entry in registry.client().list_artifacts(run_id):
                if entry.path != "model":  # it is the version's own, below
                    registry.client().download_artifacts(run_id, entry.path, str(folder))
        text = (folder / "lineage.json").read_text(encoding="utf-8")
    except (MlflowException, OSError) as error:
        raise Failed(
            f"lineage.json of version {number} of {stream} cannot be read from MLflow's run {run_id} "
            f"({one_line(error)}); bring MLflow's artifacts back to where they were"
        ) from error
    lineage = read_lineage(text, f"lineage.json of version {number} of {stream}")
    try:
        version = registry.version(stream, number)
    except Failed:
        version = None
    registered = _fetch_model(version, work / f"model-{number}") if version else work / "no-such-version"
    position = lineage.position or int(version.tags["recall.position"] if version else 0)
    return Registered(number, run_id, version, lineage, position, folder, registered)


def _fetch_model(version: ModelVersion, out: Path) -> Path:
    """The registered folder; what is missing in it is named file by file later."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        found = version.source
        if found.startswith("models:/m-"):
            found = registry.client().get_logged_model(found.removeprefix("models:/")).artifact_location
        local = _local(found)
        if local is None:
            out.mkdir(exist_ok=True)
            mlflow.artifacts.download_artifacts(version.source, dst_path=str(out))
        return local or out
    except (MlflowException, OSError):
        return out


def _local(uri: str) -> Path | None:
    """The folder of a `file:` URI; None for what lies elsewhere."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(uri)) if uri.startswith(("file:", "/")) else None
