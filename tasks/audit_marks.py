"""An audit's verdict on a version as its tags: one a level, so that no audit wipes out what a deeper one found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from recall.audit_verdicts import AuditReport, Level
from tasks import registry

AUDIT = "recall.audit"  # alone: the one tag of older releases, which did not say at what level an audit failed
LEVELS: tuple[Level, ...] = get_args(Level)  # each does all that those before it do
LONGEST = 5000  # of a tag in MLflow


def audit_tag(level: Level) -> str:
    """The tag that has a level's verdict."""
    return f"{AUDIT}.{level}"


def mark(report: AuditReport) -> None:
    """Put an audit's verdict on the version.

    A failed level stays failed until an audit of that level, or of a deeper one, passes; an incomplete audit clears
    nothing.
    """
    tags = registry.version(report.stream, report.version).tags
    names = [audit_tag(report.level)]
    if report.outcome == "passed":
        names = [audit_tag(level) for level in LEVELS[: LEVELS.index(report.level) + 1]]
        names += [AUDIT] if report.level == LEVELS[-1] and AUDIT in tags else []
    if report.outcome == "incomplete" and tags.get(names[0], "").startswith("failed"):
        return
    for name in names:
        registry.client().set_model_version_tag(report.stream, report.version, name, report.tag[:LONGEST])


def verdicts(tags: Mapping[str, str]) -> list[str]:
    """What audits said of a version, the deepest level last, each once."""
    return list(dict.fromkeys(tags[name] for name in [AUDIT, *map(audit_tag, LEVELS)] if name in tags))


def failures(tags: Mapping[str, str]) -> list[str]:
    """The verdicts that bar a version from promotion."""
    return [verdict for verdict in verdicts(tags) if verdict.startswith("failed")]
