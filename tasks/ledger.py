"""The ledger in MLflow: entries as versions of a second registered model, and the aliases that follow from them.

MLflow has no compare-and-swap, but gives out a model's version numbers one at a time. So the entries of a stream are
the versions of the registered model `<stream>.ledger`, each whole (JSON in a tag) from the moment it exists. Two
writers that saw the same newest entry write the same number; the version that MLflow made first has it, the other has
no effect. Who wrote reads back to learn which, and by then it is settled: MLflow makes no lower version number later.

The ledger is the truth and the aliases its projection: whoever comes next repairs what a killed process left.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pydantic import ValidationError

from recall.errors import Failed
from recall.ledger import Entry, Standing, broken_links, standing
from tasks import registry

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

ENTRY = "recall.entry"
DIGEST = "recall.entry_sha256"
HEAD = "recall.ledger_head"
EFFECT = "recall.effect"
NO_EFFECT = "none: another entry with this number was there first"
ATTEMPTS = 20


def ledger_name(stream: str) -> str:
    """The registered model that holds a stream's ledger."""
    return f"{stream}.ledger"


def read_ledger(stream: str) -> list[Entry]:
    """The entries that have an effect, oldest first; one whose JSON cannot be read is left out (see `faults`)."""
    return _in_effect(_versions(stream))


def _in_effect(versions: list[ModelVersion]) -> list[Entry]:
    """Of every number the first entry that was made."""
    entries: dict[int, Entry] = {}
    for version in versions:
        entry = _entry(version)
        if entry is not None:
            entries.setdefault(entry.number, entry)
    return list(entries.values())


def faults(stream: str) -> list[str]:
    """All that is wrong with the ledger as MLflow holds it, one sentence each: `broken_links`, and what MLflow adds.

    That is: entries that cannot be read, entries whose own digest does not fit, versions that were deleted, and a
    newest entry that is not the one whose digest stands at the stream's registered model and at the champion.
    """
    heads = _heads(stream)  # before the entries, which another process may be adding to
    versions = _versions(stream)
    entries = _in_effect(versions)
    found = broken_links(entries)
    numbers = {int(version.version) for version in versions}
    gone = sorted(set(range(1, max(numbers, default=0) + 1)) - numbers)
    found += [f"version {number} of {ledger_name(stream)} was deleted" for number in gone]
    for version in versions:
        entry = _entry(version)
        if entry is None:
            found.append(f"version {version.version} of {ledger_name(stream)} holds no entry that can be read")
        elif entry.digest != version.tags.get(DIGEST):
            found.append(
                f"entry {entry.number} (version {version.version} of {ledger_name(stream)}) was altered: its digest is "
                f"not the one beside it"
            )
    known = {entry.digest for entry in entries}
    found += [
        f"{where} names ledger entry {head[:12]}, which is altered or missing"
        for where, head in heads.items()
        if head not in known
    ]
    return found


def append(stream: str, entry: Entry) -> bool:
    """Write an entry; True where it has effect, False where another with its number was there first. Safe to repeat.

    Raises:
        Failed: the entry's version is not in the registry.
    """
    from mlflow.exceptions import MlflowException

    name, client = ledger_name(stream), registry.client()
    if entry in read_ledger(stream):
        return True
    run_id = registry.version(stream, entry.version).run_id
    with contextlib.suppress(MlflowException):  # it exists
        client.create_registered_model(name, description=f"Every move of {stream}'s champion (docs/promotion.md)")
    made = client.create_model_version(
        name,
        source=f"runs:/{run_id}/update.json",  # a server admits what lies in the run that is named beside it
        run_id=run_id,
        tags={ENTRY: entry.to_json(), DIGEST: entry.digest},
        description=f"{entry.action} to version {entry.version} by {entry.who}: {entry.why}"[:1000],
    )
    won = entry in read_ledger(stream)
    if not won:
        client.set_model_version_tag(name, made.version, EFFECT, NO_EFFECT)
    return won


def follow(stream: str) -> Standing:
    """Set the aliases to what the ledger says, and again where it grew meanwhile; an empty ledger changes nothing.

    Raises:
        Failed: the ledger does not come to rest.
    """
    from mlflow.exceptions import MlflowException

    client = registry.client()
    for _ in range(ATTEMPTS):
        entries = read_ledger(stream)
        wanted = standing(entries)
        there = {str(version.version) for version in registry.versions(stream)}
        if wanted.champion not in there:
            return wanted  # none yet, or it was deleted: a new move is the way out
        wanted = wanted if wanted.previous in there else Standing(wanted.champion, None)
        head = entries[-1].digest
        if differences(stream, wanted) or not _noted(stream, entries[-1]):
            try:
                _set_alias(stream, "previous", wanted.previous)
                _set_alias(stream, "champion", wanted.champion)
                client.set_model_version_tag(stream, entries[-1].version, HEAD, head)
                client.set_registered_model_tag(stream, HEAD, head)
            except MlflowException as error:
                if "unique" not in str(error).lower():
                    raise
                # Another process set the same for the first time in the same moment; the next round sees what is there.
        elif read_ledger(stream)[-1].digest == head:
            return wanted
    raise Failed(f"the ledger of {stream} did not come to rest in {ATTEMPTS} attempts; run the command again")


def differences(stream: str, wanted: Standing) -> list[str]:
    """One sentence for each alias that is not where the ledger says."""
    aliases = registry.aliases(stream)
    return [
        f"alias {name} is {_at(aliases.get(name))}, and by the ledger {_at(version)}"
        for name, version in (("champion", wanted.champion), ("previous", wanted.previous))
        if aliases.get(name) != version
    ]


def _heads(stream: str) -> dict[str, str]:
    """The digests of entries that were written down beside the ledger, by where."""
    model = _model(stream)
    noted = {f"registered model {stream}": model.tags.get(HEAD)} if model else {}
    noted |= {f"version {version.version} of {stream}": version.tags.get(HEAD) for version in registry.versions(stream)}
    return {where: head for where, head in noted.items() if head}


def _at(version: str | None) -> str:
    return f"at version {version}" if version else "not set"


def _noted(stream: str, newest: Entry) -> bool:
    model = _model(stream)
    noted = registry.version(stream, newest.version).tags.get(HEAD)
    return model is not None and model.tags.get(HEAD) == newest.digest == noted


def _set_alias(stream: str, name: str, version: str | None) -> None:
    if version is None:
        registry.client().delete_registered_model_alias(stream, name)
    else:
        registry.client().set_registered_model_alias(stream, name, version)


def _model(stream: str) -> RegisteredModel | None:
    found = registry.client().search_registered_models(f"name = '{stream}'")
    return found[0] if found else None


def _versions(stream: str) -> list[ModelVersion]:
    return registry.versions(ledger_name(stream))


def _entry(version: ModelVersion) -> Entry | None:
    try:
        return Entry.model_validate_json(version.tags.get(ENTRY, ""))
    except ValidationError:
        return None
