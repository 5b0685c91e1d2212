"""Every move of the champion, as a chain: each entry names the digest of the one before, so none changes unnoticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from recall.gates import Verdict
from recall.results import Frozen


class Entry(Frozen):
    """One move. No field has a default, so that the JSON, and with it the digest, always has them all."""

    number: int = Field(ge=1)
    action: Literal["promote", "rollback"]
    version: str  # the champion from now on
    previous: str | None  # the champion before
    who: str
    when: str  # ISO 8601, UTC
    why: str
    verdict: Verdict | None  # of a promotion
    parent: str  # digest of the entry before, "" of the first

    @property
    def digest(self) -> str:
        """SHA-256 over the entry's JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The entry as it is stored, and as its digest covers it: keys sorted, and only those that were written."""
        return json.dumps(self.model_dump(mode="json", exclude_unset=True), sort_keys=True, ensure_ascii=False)


class Standing(NamedTuple):
    """Where the aliases belong."""

    champion: str | None
    previous: str | None


def standing(entries: Sequence[Entry]) -> Standing:
    """Where the ledger says that the aliases belong.

    A promotion lays the new champion upon the old; a rollback takes it off again. So a rollback after a rollback goes
    one champion further back, never to and fro.
    """
    champions: list[str] = []
    for entry in entries:
        if entry.action == "promote":
            champions.append(entry.version)
        else:
            champions = champions[:-1] or [entry.version]
    return Standing(champions[-1] if champions else None, champions[-2] if len(champions) > 1 else None)


def broken_links(entries: Sequence[Entry]) -> list[str]:
    """One sentence for each fault of the chain: an entry altered, missing, out of order, there twice; [] if it holds.

    An entry is vouched for by the next one; a change or loss of the newest alone shows only where its digest was
    written down elsewhere (`tasks.ledger.faults`).
    """
    faults = []
    numbers = [entry.number for entry in entries]
    for number in range(1, max(numbers, default=0) + 1):
        if numbers.count(number) != 1:
            faults.append(f"entry {number} is {'there twice' if number in numbers else 'missing'}")
    by_number = {entry.number: entry for entry in entries}
    for place, entry in enumerate(entries):
        if place and entry.number < numbers[place - 1]:
            faults.append(f"entry {entry.number} is out of order: it comes after entry {numbers[place - 1]}")
        before = by_number.get(entry.number - 1)
        if entry.number == 1 and entry.parent:
            faults.append(f"entry 1 names an entry before it, {entry.parent[:12]}: the ledger's beginning is missing")
        elif before and entry.parent != before.digest:
            faults.append(
                f"entry {before.number} was altered, or entry {entry.number} was: the latter was made after an entry "
                f"with digest {entry.parent[:12] or '(none)'}, and entry {before.number} has {before.digest[:12]}"
            )
    return faults
