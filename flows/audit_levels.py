"""An audit, in order: what the registry has, every file, the data, the code, the metrics, then what is made again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from recall.audit_verdicts import AuditedUpdate, AuditReport, Level, Link
from recall.errors import BadInput, Failed
from recall.lineage import Lineage
from tasks import ledger
from tasks.audit_code import check_code
from tasks.audit_data import check_data
from tasks.audit_fetch import Fetched, fetched
from tasks.audit_files import check_files
from tasks.audit_full import check_retrained
from tasks.audit_marks import mark
from tasks.audit_merge import check_merges
from tasks.audit_metrics import check_metrics
from tasks.audit_net import broken, tried
from tasks.audit_reach import reached
from tasks.audit_source import Registered, find_version, read_chain
from tasks.audit_tags import check_tags
from tasks.signing import check_signature
from tasks.store import Store


def examine(
    uri: str, level: Level = "hashes", store: Path = Path(".store"), public_key: Path | None = None
) -> tuple[AuditReport, Lineage | None]:
    """Audit a registered version and all updates before it, and mark the version with the verdict.

    No check ends the audit: one that breaks is a link that says so.

    Returns:
        the report, and the newest update's lineage; None where it cannot be read, which the report says.

    Raises:
        BadInput: there is no such version.
        OutOfReach: the registry cannot be asked.
    """
    started = time.monotonic()
    stream, number = find_version(uri)
    chain, links = read_chain(stream, number)
    with TemporaryDirectory(prefix="recall-audit-", ignore_cleanup_errors=True) as folder:
        work, artifacts = Path(folder), Store(root=store.resolve())
        for update in chain:
            links += tried(update.position, "lineage", f"tags of version {update.number}", check_tags, update)
            key = (stream, public_key) if update is chain[-1] else None
            links += tried(update.position, "merged", "files in MLflow", _files, update, artifacts, work, key)
            links += tried(update.position, "code", "code", check_code, update)
        links += tried(0, "data", "data sets", check_data, chain, artifacts, work)
        links += tried(0, "ledger", "ledger of promotions", _ledger, stream)
        if level != "hashes":
            links += tried(0, "merged", "merges", check_merges, chain, work)
        if level == "full":
            links += tried(0, "merged", "retrained", check_retrained, chain, work)
    report = AuditReport(
        model_uri=uri,
        stream=stream,
        version=number,
        level=level,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 1),
        updates=[_update(update) for update in chain],
        links=links,
    )
    return _marked(report), chain[-1].lineage if chain else None


def _files(update: Registered, artifacts: Store, work: Path, signed: tuple[str, Path | None] | None) -> Iterator[Link]:
    """All that needs an update's files, which may be gigabytes: they are here for no longer than that."""
    with fetched(update, work) as here:
        yield from tried(update.position, "merged", "files", check_files, here, artifacts)
        yield from tried(update.position, "scores", "scores", check_metrics, here, work)
        if signed:
            yield from tried(update.position, "merged", "signature", _signature, here, *signed, work)


def _signature(update: Fetched, stream: str, public_key: Path | None, work: Path) -> Iterator[Link]:
    yield check_signature(update, stream, public_key, work)


def _marked(report: AuditReport) -> AuditReport:
    """The report, whose verdict the version has now; where it cannot be told, that is one more link."""
    try:
        with reached("the version's tags"):
            mark(report)
    except Failed as error:
        link = broken(0, "ledger", "the tag with this verdict", error)
        return report.model_copy(update={"links": [*report.links, link]})
    return report


def checked_key(public_key: Path | None) -> Path | None:
    """Before anything slow.

    Raises:
        BadInput: it is no file.
    """
    if public_key is not None and not public_key.is_file():
        raise BadInput(f"--public-key {public_key} is no file that can be read; name the signer's public key (PEM)")
    return public_key


def _ledger(stream: str) -> Iterator[Link]:
    faults = ledger.faults(stream)
    for fault in faults:
        yield Link(update=0, node="ledger", name="ledger of promotions", status="failed",
                   expected="an unbroken chain of entries", found=fault)  # fmt: skip
    if not faults:
        moves = len(ledger.read_ledger(stream))
        yield Link(update=0, node="ledger", name="ledger of promotions", status="ok",
                   expected="an unbroken chain of entries", found=f"{moves} entries, unbroken")  # fmt: skip


def _update(update: Registered) -> AuditedUpdate:
    lineage = update.lineage
    trained_on = [entry.name for entry in lineage.data_sets if entry.trained_on]
    return AuditedUpdate(
        position=update.position,
        learning_task=lineage.learning_task or ", ".join(trained_on),
        version=update.number,
        run_id=update.run_id,
        data=trained_on,
        pool=[entry.name for entry in lineage.pool or []],
    )
