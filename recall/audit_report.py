"""The audit as one self-contained HTML page: the verdict, the lineage drawn, every link, and the lineage itself."""

from __future__ import annotations

from pathlib import Path

from recall.audit_verdicts import AuditReport, Link
from recall.html_pages import page_template
from recall.lineage import Lineage
from recall.lineage_drawing import draw_lineage
from recall.text_files import write_text

WORDS = {"ok": "holds", "failed": "does not hold", "unknown": "could not be checked"}


def write_audit(report: AuditReport, lineage: Lineage | None, folder: Path) -> None:
    """Write `audit.html` and `audit.json` to `folder`, each whole or not at all.

    Raises:
        Failed: a file cannot be written.
    """
    write_text(folder / "audit.html", render_audit(report, lineage))
    write_text(folder / "audit.json", report.model_dump_json(indent=1))


def render_audit(report: AuditReport, lineage: Lineage | None) -> str:
    """The page's HTML; all text from data sets and the registry is escaped."""
    page = page_template("audit.html.j2").render(
        report=report,
        lineage=lineage,
        drawing=draw_lineage(report),
        groups=_groups(report),
        words=WORDS,
    )
    return page + "\n"


def _groups(report: AuditReport) -> list[tuple[str, list[Link]]]:
    """The links of each update and those of none, what does not hold first."""
    rank = {"failed": 0, "unknown": 1, "ok": 2}
    groups = []
    for position in sorted({link.update for link in report.links}):
        names = [update.learning_task for update in report.updates if update.position == position]
        title = f"Update {position}: {', '.join(names)}" if position else "The registry"
        links = [link for link in report.links if link.update == position]
        groups.append((title, sorted(links, key=lambda link: rank[link.status])))
    return groups
