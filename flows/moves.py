"""What promotion and rollback share: a ledger that holds, the next entry, and what came of it."""

from __future__ import annotations

import getpass
import os
from typing import Literal

from recall.errors import BadInput, Failed
from recall.gates import Verdict
from recall.ledger import Entry, standing
from recall.progress import console
from recall.results import Frozen
from tasks import ledger, registry
from tasks.promote import now, refusals


class Move(Frozen):
    """What came of a command that moves the champion; `entry` is None where it did not."""

    stream: str
    version: str
    champion: str | None  # after the command, as is `previous`
    previous: str | None
    said: str
    verdict: Verdict | None
    entry: Entry | None


def roll_back(stream: str, why: str, who: str) -> Move:
    """Make the champion before the present one champion again, and write that down.

    Raises:
        Failed: there is none, it may not be champion any more, the ledger does not hold, or another move came first.
    """
    entries = sound_ledger(stream)
    champion, previous = standing(entries)
    if previous is None:
        at = f"version {champion} is the first in its ledger" if champion else "nothing was promoted yet"
        raise Failed(
            f"there is no champion of {stream} to go back to: {at}; choose one with `recall promote --version N`"
        )
    refused = refusals(stream, previous)
    if refused:
        raise Failed(f"version {previous} of {stream} may not be champion again: {'; '.join(refused)}")
    entry = new_entry(entries, "rollback", previous, who, why, None)
    won = ledger.append(stream, entry)
    ledger.follow(stream)
    if not won:
        raise Failed(f"nothing was rolled back by this command: {who_came_first(stream)}")
    said = f"version {previous} of {stream} is the champion again, instead of {champion}; ledger entry {entry.number}"
    return outcome_of(stream, previous, said, None, entry)


def sound_ledger(stream: str) -> list[Entry]:
    """The entries, after a check that they hold, with the aliases where they say (a killed command may have left them).

    Raises:
        Failed: the ledger does not hold.
    """
    found = ledger.faults(stream)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Failed(
            f"the ledger of {stream} does not hold, so nothing is moved: {found[0]}{more}; restore MLflow's database "
            "from a backup, and see `recall status` for all faults"
        )
    entries = ledger.read_ledger(stream)
    for difference in ledger.differences(stream, standing(entries)) if entries else []:
        console.print(f"[yellow]warning[/]: {difference}; set back", highlight=False, soft_wrap=True)
    ledger.follow(stream)
    return entries


def version_to_judge(stream: str, version: str | None, champion: str | None) -> tuple[str, str | None]:
    """The version asked for, by default the challenger, and the champion to compare with if it was not deleted.

    Raises:
        BadInput: there is no such version.
    """
    there = [str(found.version) for found in registry.versions(stream)]
    number = version or registry.aliases(stream).get("challenger")
    if number is None or number not in there:
        asked = f"no version {version}" if version else "no version"
        has = f"; it has {', '.join(there)}" if there else "; make one with `recall run`"
        raise BadInput(f"the registered model {stream} has {asked} to promote{has}")
    return number, champion if champion in there else None


def new_entry(
    entries: list[Entry],
    action: Literal["promote", "rollback"],
    version: str,
    who: str,
    why: str,
    verdict: Verdict | None,
) -> Entry:
    """The entry that follows `entries`."""
    return Entry(
        number=len(entries) + 1,
        action=action,
        version=version,
        previous=standing(entries).champion,
        who=who,
        when=now(),
        why=why,
        verdict=verdict,
        parent=entries[-1].digest if entries else "",
    )


def outcome_of(
    stream: str, version: str, said: str, verdict: Verdict | None = None, entry: Entry | None = None
) -> Move:
    """What a command ends with, and where it leaves the champion."""
    champion, previous = standing(ledger.read_ledger(stream))
    return Move(
        stream=stream,
        version=version,
        champion=champion,
        previous=previous,
        said=said,
        verdict=verdict,
        entry=entry,
    )


def who_came_first(stream: str) -> str:
    """What to tell somebody whose entry has no effect."""
    newest = ledger.read_ledger(stream)[-1]
    return (
        f"{newest.who} came first ({newest.action} to version {newest.version}, ledger entry {newest.number}); run it "
        "again to go on from there"
    )


def whoami() -> str:
    """Who moves the champion: the user that MLflow's server knows, or the operating system's."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
