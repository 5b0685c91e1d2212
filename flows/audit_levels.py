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
from tasks.audit_files import check_files
from tasks.audit_full import check_retrained
from tasks.audit_merge import check_merges
from tasks.audit_metrics import check_metrics
from tasks.audit_source import Registered, find_version, read_chain, set_verdict
from tasks.audit_tags import check_tags
from tasks.signing import check_signature
from tasks.store import Store


def examine(
    uri: str, level: Level = "hashes", store: Path = Path(".store"), public_key: Path | None = None
) -> tuple[AuditReport, Lineage]:
    """Audit a registered version and all updates before it, and mark the version with the verdict.

    Returns:
        the report, and the newest update's lineage.

    Raises:
        BadInput: there is no such version.
        Failed: its lineage cannot be read.
    """
    started = time.monotonic()
    stream, number = find_version(uri)
    with TemporaryDirectory(prefix="recall-audit-") as folder:
        work = Path(folder)
        try:
            chain, links = read_chain(stream, number, work)
        except Failed as error:
            set_verdict(stream, number, f"failed: {error}")
            raise
        artifact_store = Store(root=store.resolve())
        for update in chain:
            links += check_tags(update)
            links += check_files(update, artifact_store)
            links += check_metrics(update, work)
            links += check_code(update)
        links += check_data(chain, artifact_store, work)
        links += _ledger(stream)
        links.append(check_signature(chain[-1], stream, public_key, work))
        if level != "hashes":
            links += check_merges(chain, work)
        if level == "full":
            links += check_retrained(chain, work)
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
    set_verdict(stream, number, report.tag)
    return report, chain[-1].lineage


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
