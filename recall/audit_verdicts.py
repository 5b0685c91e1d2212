"""What an audit found: a verdict for every link of the chain that a model's lineage names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from recall.results import Frozen

Status = Literal["ok", "failed", "unknown"]
Level = Literal["hashes", "merge", "full"]
BEFORE = "registered before audits recorded it"


class Link(Frozen):
    """One thing that was checked; `node` is the box of the drawing that it belongs to, `update` 0 where to none."""

    update: int
    node: str
    name: str
    status: Status
    expected: str
    found: str

    @property
    def sentence(self) -> str:
        """The fault in words."""
        where = f"update {self.update}, {self.name}" if self.update else self.name
        return f"{where}: expected {self.expected}, found {self.found}"


class AuditedUpdate(Frozen):
    """One update of the chain, for the drawing and the tables: what it took in and where it is registered."""

    position: int
    learning_task: str
    version: str
    run_id: str
    data: list[str]
    pool: list[str]


class AuditReport(Frozen):
    """One audit. `passed` allows for what is unknown, and says how much of that there is."""

    model_uri: str
    stream: str
    version: str
    level: Level
    time: str
    seconds: float
    updates: list[AuditedUpdate]
    links: list[Link]

    @property
    def failed(self) -> list[Link]:
        """The links that do not hold."""
        return [link for link in self.links if link.status == "failed"]

    @property
    def unknown(self) -> list[Link]:
        """The links that could not be checked."""
        return [link for link in self.links if link.status == "unknown"]

    @property
    def tag(self) -> str:
        """What the registered version is marked with."""
        return f"failed: {self.failed[0].sentence}" if self.failed else f"passed {self.level} {self.time}"

    @property
    def verdict(self) -> str:
        """The audit in one sentence."""
        total, failed, unknown = len(self.links), len(self.failed), len(self.unknown)
        if failed:
            more = f" and {failed - 1} more" if failed > 1 else ""
            return f"{self.model_uri} failed at level {self.level}: {self.failed[0].sentence}{more}"
        rest = f", {unknown} could not be checked" if unknown else ""
        return f"{self.model_uri} passed at level {self.level}: {total - unknown} of {total} links hold{rest}"


def worst(statuses: Iterable[Status]) -> Status | None:
    """Failed before unknown before ok; None where there is none."""
    found = set(statuses)
    order: tuple[Status, ...] = ("failed", "unknown", "ok")
    return next((status for status in order if status in found), None)
