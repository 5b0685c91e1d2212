"""The audit as a flow, for a schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.audit_levels import checked_key, examine
from flows.audit_outputs import write_outputs
from recall.audit_verdicts import AuditReport, Level
from recall.errors import Failed
from recall.load_settings import load_settings
from recall.markdown import escaped
from tasks import ledger, registry


@flow(name="audit")
def audit(
    model_uri: str | None = None,
    level: Level = "hashes",
    config: str = "params.yaml",
    public_key: str | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Audit a version, by default the champion of the stream that `config` names; returns the verdict and the counts.

    Raises:
        BadInput: there is no such version.
        Failed: a link does not hold or was out of reach, so that the flow run fails, and what watches it hears of that.
    """
    settings = load_settings(Path(config))
    if model_uri is None and not _has_champion(settings.stream.name):
        verdict = (
            f"{settings.stream.name} has no champion yet, so there is nothing to audit; `recall promote` makes one"
        )
        return {"verdict": verdict, "links": 0, "unknown": 0}
    uri = model_uri or f"models:/{settings.stream.name}@champion"
    report, lineage = examine(uri, level, settings.store, checked_key(Path(public_key) if public_key else None))
    folder = write_outputs(report, lineage, Path(out) if out else None)
    create_markdown_artifact(_markdown(report, folder), key="audit", description="Does every link of the lineage hold?")
    if report.outcome != "passed":
        raise Failed(report.verdict)
    return {"verdict": report.verdict, "links": len(report.links), "unknown": len(report.unknown)}


def _has_champion(stream: str) -> bool:
    """By the alias, or by the ledger, from which the alias may have been taken away."""
    return "champion" in registry.aliases(stream) or bool(ledger.read_ledger(stream))


def _markdown(report: AuditReport, folder: Path) -> str:
    lines = [f"# Audit of {escaped(report.model_uri)}", "", escaped(report.verdict), ""]
    lines += [f"- {link.status}: {escaped(link.sentence)}" for link in (*report.failed, *report.unknown)]
    return "\n".join([*lines, "", f"Page: {escaped(str((folder / 'audit.html').resolve()))}"])
