"""Where a stream stands: its versions, where the aliases are, what the gates and audits said, and the ledger."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from recall.ledger import Entry, standing
from recall.results import Frozen
from recall.settings import Settings
from tasks import ledger, registry
from tasks.audit_marks import verdicts
from tasks.promote import PROMOTION, VERDICT


class VersionRow(Frozen):
    """One version of the stream's registered model; what was never said of it is None."""

    version: str
    made: str
    position: int | None
    learning_task: str | None
    draft: bool
    aliases: list[str]
    promotion: str | None
    verdict: str | None  # of the gates, as JSON
    audit: str | None


class Status(Frozen):
    """Where a stream stands. `not_taken_in` has no version at all, be it of earlier data or settings or a draft;
    `differences` are aliases that are not where the ledger says, `faults` what is wrong with the ledger itself."""

    stream: str
    learning_tasks: list[str]
    not_taken_in: list[str]
    aliases: dict[str, str]
    champion: str | None
    previous: str | None
    differences: list[str]
    faults: list[str]
    versions: list[VersionRow]
    ledger: list[Entry]


def stream_status(settings: Settings) -> Status:
    """Read it all from the registry; changes nothing."""
    stream, wanted = settings.stream.name, settings.stream.learning_tasks
    aliases, versions, entries = registry.aliases(stream), registry.versions(stream), ledger.read_ledger(stream)
    champion, previous = standing(entries)
    taken_in = {version.tags.get("recall.learning_task") for version in versions}
    return Status(
        stream=stream,
        learning_tasks=wanted,
        not_taken_in=[name for name in wanted if name not in taken_in],
        aliases=aliases,
        champion=champion,
        previous=previous,
        differences=ledger.differences(stream, standing(entries)),
        faults=ledger.faults(stream),
        versions=[
            VersionRow(
                version=str(version.version),
                made=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
                position=int(version.tags["recall.position"]) if "recall.position" in version.tags else None,
                learning_task=version.tags.get("recall.learning_task"),
                draft=version.tags.get("recall.draft") != "false",
                aliases=sorted(name for name, number in aliases.items() if number == str(version.version)),
                promotion=version.tags.get(PROMOTION),
                verdict=version.tags.get(VERDICT),
                audit="; ".join(verdicts(version.tags)) or None,
            )
            for version in versions
        ],
        ledger=entries,
    )


def shown(status: Status) -> Group:
    """The status for a terminal."""
    parts: list[Table | str] = [_versions(status)]
    if status.ledger:
        parts.append(_ledger(status.ledger))
    parts += [escape(line) for line in sentences(status)]
    return Group(*parts)


def sentences(status: Status) -> list[str]:
    """What stands, in words, and first of all what is wrong."""
    told = [f"[!] {difference}; the next `recall promote` sets it back" for difference in status.differences]
    told += [f"[!] ledger: {fault}" for fault in status.faults]
    if not status.versions:
        return [*told, f"{status.stream} has no version yet; make one with `recall run`"]
    count = len(status.learning_tasks) - len(status.not_taken_in)
    rest = f"; not yet: {', '.join(status.not_taken_in)}" if status.not_taken_in else ""
    told.append(
        f"{count} of {len(status.learning_tasks)} learning tasks have a version, drafts and earlier data counted"
        f"{rest}; `recall run` makes what is new"
    )
    champion = f"champion: version {status.champion}" if status.champion else "no champion yet"
    told.append(champion + (f", before it version {status.previous}" if status.previous else ""))
    if not status.ledger and not status.faults:
        told.append("ledger: no entry yet; the first `recall promote` writes it")
    elif not status.faults:
        count = len(status.ledger)
        entries = "1 entry" if count == 1 else f"{count} entries"
        told.append(f"ledger: {entries}, the chain holds; newest {status.ledger[-1].digest}")
    return told


def _versions(status: Status) -> Table:
    table = Table(title=escape(f"stream {status.stream}"))
    for heading in ("version", "made", "learning task", "aliases", "promotion", "audit"):
        table.add_column(heading)
    for row in status.versions:
        promotion = row.promotion or ("draft: can never be promoted" if row.draft else "")
        cells = [
            row.version,
            row.made[:16],
            row.learning_task or "",
            ", ".join(row.aliases),
            promotion,
            row.audit or "",
        ]
        table.add_row(*map(escape, cells))
    return table


def _ledger(entries: list[Entry]) -> Table:
    table = Table(title="ledger")
    for heading in ("entry", "when", "move", "who", "why", "digest"):
        table.add_column(heading)
    for entry in entries:
        move = f"{entry.action}: {entry.previous or 'none'} to {entry.version}"
        cells = [str(entry.number), entry.when[:16], move, entry.who, entry.why, entry.digest[:12]]
        table.add_row(*map(escape, cells))
    return table
