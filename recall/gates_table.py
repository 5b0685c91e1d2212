"""A verdict as a table, for a terminal and for Prefect's pages; scores in points, 100 times the score."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from recall.gates import Gate, Verdict
from recall.markdown import escaped

HEADINGS = ("gate", "learning tasks", "found", "wanted", "low", "high", "rows", "verdict")
COLORS = {"pass": "green", "fail": "red", "borderline": "yellow"}


def table(verdict: Verdict) -> Table:
    """The gates of a verdict, a row each."""
    confidence = f"{100 * verdict.confidence:g} %"
    shown = Table(
        title=escape(f"version {verdict.version}: {verdict.outcome}"),
        caption=f"points; low and high: {confidence} bounds, one-sided, {verdict.resamples} resamples of the test rows",
        caption_justify="left",
    )
    for heading in HEADINGS:
        shown.add_column(heading, justify="right" if heading in {"found", "low", "high", "rows"} else "left")
    for gate in verdict.gates:
        *cells, outcome = _cells(gate)
        shown.add_row(*map(escape, cells), f"[{COLORS[outcome]}]{outcome}[/]")
    return shown


def markdown(stream: str, verdict: Verdict) -> str:
    """The same for Prefect; what came from outside is escaped."""
    lines = [f"# {escaped(stream)}, version {escaped(verdict.version)}: {verdict.outcome}", ""]
    lines += [escaped(verdict.why), "", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    lines += [f"| {' | '.join(map(escaped, _cells(gate)))} |" for gate in verdict.gates]
    lines += ["", f"Points; bounds at {100 * verdict.confidence:g} %, one-sided, {verdict.resamples} resamples."]
    return "\n".join(lines)


def _cells(gate: Gate) -> list[str]:
    tasks = ", ".join(gate.learning_tasks) + (f" ({gate.note})" if gate.note else "")
    against = f"{gate.name} against {gate.compared_with}" if gate.name == "unseen" else gate.name
    found = [_points(gate.estimate), f"{gate.demands} {_points(gate.threshold)}", _points(gate.low), _points(gate.high)]
    return [against, tasks, *found, str(gate.rows), gate.outcome]


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
