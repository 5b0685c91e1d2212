"""What the registry holds of one version and of every update before it: the only thing that an audit starts from."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recall.audit_verdicts import BEFORE, Link, Status
from recall.errors import BadInput, Failed, OutOfReach
from recall.lineage import Lineage, read_lineage
from tasks import registry
from tasks.audit_net import broken
from tasks.audit_reach import reached, run_file

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Registered:
    """One update as the registry has it. `version` is None where it was deleted, and only the run is left.

    `lineage_sha256` is that of the `lineage.json` which MLflow has now.
    """

    number: str
    run_id: str
    version: ModelVersion | None
    lineage: Lineage
    position: int
    lineage_sha256: str

    @property
    def tags(self) -> dict[str, str]:
        """Of the version."""
        return dict(self.version.tags) if self.version else {}

    def link(
        self, node: str, name: str, status: Status, expected: str, found: str, *, out_of_reach: bool = False
    ) -> Link:
        """A verdict on something of this update."""
        return Link(
            update=self.position,
            node=node,
            name=name,
            status=status,
            expected=expected,
            found=found,
            out_of_reach=out_of_reach,
        )

    def unrecorded(self, node: str, name: str, expected: str) -> Link:
        """The verdict where nothing is recorded: unknown of an old lineage, while a new one always records it."""
        if self.lineage.format == 1:
            return self.link(node, name, "unknown", expected, BEFORE)
        found = f"nothing, and a lineage of format {self.lineage.format} always has it"
        return self.link(node, name, "failed", expected, found)


def find_version(uri: str) -> tuple[str, str]:
    """(registered model, version) of `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        BadInput: it is no such URI, or the registry has no such version.
    """
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/([0-9]+))", uri)
    if found is None:
        raise BadInput(f"{uri} names no registered version; write models:/NAME@champion or models:/NAME/7")
    name, alias, number = found.groups()
    try:
        with reached(uri):
            if alias:
                number = registry.client().get_model_version_by_alias(name, alias).version
            return name, str(registry.client().get_model_version(name, str(number)).version)
    except OutOfReach:
        raise
    except Failed as error:
        raise BadInput(f"{uri} is not in the registry ({error}); `recall status` shows what is") from error


def read_chain(stream: str, number: str, depth: int | None = None) -> tuple[list[Registered], list[Link]]:
    """The version's update and all before it, oldest first, and a verdict on what ties each to the next.

    The chain is empty where the newest version has no lineage that can be read; the one link says why.

    Args:
        depth: so many updates at most.
    """
    try:
        own = _newest(stream, number)
    except Failed as error:
        return [], [broken(0, "lineage", f"lineage.json of version {number}", error)]
    links = [_lineage_link(own, own.tags.get(registry.LINEAGE), stream)]
    chain = [own]
    while (before := chain[0].lineage.previous) is not None and len(chain) != depth:
        try:
            found = _read(stream, before.version, before.run_id)
        except Failed as error:
            links.append(broken(chain[0].position - 1, "lineage", "lineage.json", error))
            return chain, links
        links.append(_lineage_link(found, before.lineage_sha256, stream))
        if found.position != chain[0].position - 1:
            wanted, said = f"update {chain[0].position - 1} before", f"update {found.position}"
            links.append(chain[0].link("lineage", "lineage.json", "failed", wanted, said))
            return chain, links
        chain.insert(0, found)
    first = chain[0]
    if first.lineage.format == 1 and first.position > 1:
        links.append(Link(update=first.position - 1, node="lineage", name="lineage.json", status="unknown",
                          expected="the update before", found=BEFORE))  # fmt: skip
    return chain, links


def metrics(run_id: str) -> dict[str, float]:
    """What MLflow's database says of a run now."""
    with reached(f"run {run_id}"):
        return dict(registry.client().get_run(run_id).data.metrics)


def run_lineage(run_id: str, what: str) -> tuple[Lineage, str]:
    """The lineage in a run, and the SHA-256 of its file.

    Raises:
        Failed: MLflow does not have it, or it is no lineage.
        OutOfReach: nobody can say.
    """
    content = run_file(run_id, "lineage.json")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Failed(f"{what} is no text; bring it back as it was registered") from error
    return read_lineage(text, what), hashlib.sha256(content).hexdigest()


def _lineage_link(found: Registered, expected: str | None, stream: str) -> Link:
    """Is `lineage.json` the file that the version's tag, or the next update's lineage, names?"""
    name, actual = "lineage.json", found.lineage_sha256
    if expected is None:
        return found.unrecorded("lineage", name, "the SHA-256 that was registered")
    if actual == expected:
        return found.link("lineage", name, "ok", f"SHA-256 {expected}", f"SHA-256 {actual}")
    return found.link("lineage", name, "failed", f"SHA-256 {expected}", f"SHA-256 {actual}{_whose(found, stream)}")


def _whose(found: Registered, stream: str) -> str:
    """Of which other version a lineage is, in words."""
    try:
        with reached(stream):
            twins = registry.versions(stream, {registry.LINEAGE: found.lineage_sha256})
    except Failed:
        return ""
    others = [str(version.version) for version in twins if str(version.version) != found.number]
    return f", which is that of version {others[0]}" if others else ""


def _newest(stream: str, number: str) -> Registered:
    with reached(f"version {number} of {stream}"):
        tags = registry.version(stream, number).tags
    if registry.RUN not in tags:
        raise Failed(
            f"version {number} of {stream} was not registered by `recall run`, or not to the end: it has no tag "
            f"{registry.RUN}, so that nothing says what it was made from"
        )
    return _read(stream, number, tags[registry.RUN])


def _read(stream: str, number: str, run_id: str) -> Registered:
    lineage, sha256 = run_lineage(run_id, f"lineage.json of version {number} of {stream}")
    version: ModelVersion | None
    try:
        with reached(f"version {number} of {stream}"):
            version = registry.version(stream, number)
    except OutOfReach:
        raise
    except Failed:
        version = None
    position = lineage.position or int(version.tags.get("recall.position", 0) if version else 0)
    return Registered(number, run_id, version, lineage, position, sha256)
