"""What an audit found: a verdict for every link of the chain that a model's lineage names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from recall.results import Frozen

Status = Literal["ok", "failed", "unknown"]
Level = Literal["hashes", "merge", "full"]
Outcome = Literal["passed", "failed", "incomplete"]
BEFORE = "registered before audits recorded it"


class Link(Frozen):
    """One thing that was checked; `node` is the box of the drawing that it belongs to, `update` 0 where to none.

    `out_of_reach`: it is unknown only because something could not be looked at now, so another audit may find out.
    """

    update: int
    node: str
    name: str
    status: Status
    expected: str
    found: str
    out_of_reach: bool = False

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
    """One audit. `passed` allows for what was never recorded and says how much of that there is; what was out of reach
    makes the audit `incomplete`."""

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
    def out_of_reach(self) -> list[Link]:
        """The links that another audit may be able to check."""
        return [link for link in self.links if link.out_of_reach]

    @property
    def outcome(self) -> Outcome:
        """The audit in a word."""
        return "failed" if self.failed else "incomplete" if self.out_of_reach else "passed"

    @property
    def tag(self) -> str:
        """What the registered version is marked with; begins with the outcome."""
        if self.outcome == "passed":
            return f"passed {self.level} {self.time}"
        return f"{self.outcome} at level {self.level}: {(self.failed or self.out_of_reach)[0].sentence}"

    @property
    def verdict(self) -> str:
        """The audit in one sentence."""
        total, unknown, away = len(self.links), len(self.unknown), len(self.out_of_reach)
        if self.outcome == "passed":
            rest = f", {unknown} could not be checked" if unknown else ""
            return f"{self.model_uri} passed at level {self.level}: {total - unknown} of {total} links hold{rest}"
        first = (self.failed or self.out_of_reach)[0].sentence
        if self.outcome == "failed":
            more = f" and {len(self.failed) - 1} more" if len(self.failed) > 1 else ""
            return f"{self.model_uri} failed at level {self.level}: {first}{more}"
        return (
            f"{self.model_uri} could not be audited to the end at level {self.level}: {total - unknown} of {total} "
            f"links hold, {away} out of reach: {first}; run it again"
        )


def worst(statuses: Iterable[Status]) -> Status | None:
    """Failed before unknown before ok; None where there is none."""
    found = set(statuses)
    order: tuple[Status, ...] = ("failed", "unknown", "ok")
    return next((status for status in order if status in found), None)
