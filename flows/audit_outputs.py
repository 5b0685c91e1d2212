"""What an audit leaves: the page, its JSON, the model card and the ML-BOM."""

from __future__ import annotations

from pathlib import Path

from recall.audit_report import write_audit
from recall.audit_verdicts import AuditReport
from recall.lineage import Lineage
from recall.ml_bom import ml_bom
from recall.model_card import version_card
from recall.text_files import write_text

AUDITS = Path("reports") / "audits"
CARD, BOM = "model_card.md", "ml_bom.json"


def write_outputs(report: AuditReport, lineage: Lineage | None, out: Path | None = None) -> Path:
    """Write them to `out`, or to a folder of the version's own below `reports/audits`; returns the folder.

    Card and BOM are made here and not at registration: out of a lineage that has just been checked, also for versions
    that were registered before there were any, and never stored where they could come to disagree with it.
    """
    folder = out or AUDITS / f"{report.stream}-{report.version}"
    write_audit(report, lineage, folder)
    if lineage is None:  # nothing that a card or BOM could say; those of an earlier audit would speak for this one
        for name in (CARD, BOM):
            (folder / name).unlink(missing_ok=True)
        return folder
    learning_tasks = [update.learning_task for update in report.updates]
    card = version_card(lineage, report.stream, report.version, learning_tasks, report.verdict)
    write_text(folder / CARD, card)
    write_text(folder / BOM, ml_bom(lineage, report.stream, report.version, report.time))
    return folder
