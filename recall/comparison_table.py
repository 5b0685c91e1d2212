"""A comparison's setting as a table, and as one honest sentence: who won, and by more than chance or not."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from recall.comparison import Difference, Estimate, MethodSummary, SettingSummary
from recall.comparison_measures import MEANS, SEEN, UNSEEN
from recall.standings import LABELS, points

TITLES = {
    "single": "one expert merged with the base, for each learning task",
    "independent": "all experts merged once",
    "stream": "learning task after learning task",
}
NO_RIVALS = ("base", "expert")
MINUS = "\N{MINUS SIGN}"


def table(summary: SettingSummary) -> Table:
    """Points with 95% intervals, and RECALL's (or that of `ours`) average over seen minus each method's."""
    ours = label_of(summary.ours)
    shown = Table(
        title=escape(f"{summary.stream}: {title(summary)}"),
        caption="points: 100 x the score, higher is better but in forgetting; +- half the width of the 95% interval; "
        f"the last columns: {ours} minus the method with its interval, * where that leaves out zero; cases won : lost",
        caption_justify="left",
    )
    shown.add_column("", overflow="fold")  # cut short, two values of one setting would look alike
    for name in columns(summary):
        metric = summary.metrics.get(name, "")
        shown.add_column(escape(f"{name}\n{metric}".strip()), justify="right")
    compared = [name for name in (SEEN, UNSEEN) if any(name in method.against for method in summary.methods)]
    for name in compared:
        shown.add_column(f"{ours} minus it,\n{name}", justify="right")
    for method in summary.methods:
        cells = [cell(method.measures.get(name)) for name in columns(summary)]
        shown.add_row(
            escape(label_of(method.label)), *cells, *(difference_cell(method.against.get(name)) for name in compared)
        )
    return shown


def title(summary: SettingSummary) -> str:
    """The setting in words, what was scored on, and how many cases there are."""
    cases = f"{summary.cases} case{'s' if summary.cases != 1 else ''} (seeds and orders)"
    return f"{summary.setting}, {TITLES[summary.setting]}; {summary.split} split, {cases}"


def columns(summary: SettingSummary) -> list[str]:
    """The learning tasks in the stream's order, then the means that any method has."""
    found = {name for method in summary.methods for name in method.measures}
    return [*summary.learning_tasks, *(name for name in MEANS if name in found)]


def label_of(label: str) -> str:
    """A method's name for people; of RECALL with a changed setting also that."""
    method, _, varied = label.partition(" ")
    return f"{LABELS.get(method, method)} {varied}".strip()


def cell(estimate: Estimate | None) -> str:
    """A mean with half of its interval's width."""
    if estimate is None:
        return ""
    return f"{points(estimate.value):.1f} ±{points((estimate.high - estimate.low) / 2):.1f}"


def difference_cell(difference: Difference | None) -> str:
    """Ours minus another's, with the interval, and the cases won and lost."""
    if difference is None:
        return ""
    mark = "*" if difference.beyond_chance else ""
    return f"{_signed(difference.value)}{mark} {_interval(difference)} {difference.wins}:{difference.losses}"


def sentence(summary: SettingSummary) -> str:
    """Who is best over the learning tasks seen and over the unseen ones, and whether chance may explain it.

    The base and the experts, which know one learning task or none, do not count (but where the base is above it is
    said), nor does RECALL with a setting changed: choosing among these on what they are tested on would be no result.
    """
    clauses = []
    for name, where in ((SEEN, "the learning tasks seen"), (UNSEEN, "the unseen ones")):
        methods = {
            method.label: method
            for method in summary.methods
            if name in method.measures
            and (method.label == summary.ours or "=" not in method.label)
            and method.label.partition(" ")[0] not in NO_RIVALS
        }
        if summary.ours in methods:
            clauses.append(_standing(summary.ours, where, name, methods) + _under_base(summary, name))
    if not clauses:
        return f"{summary.setting}: {label_of(summary.ours)} has no whole case yet, so nothing can be compared."
    doubt = "" if summary.trainings > 1 else "; trained once, so the intervals hold chance in the rows alone"
    return f"{summary.setting}: {'; '.join(clauses)}{doubt}."


def _standing(ours: str, where: str, name: str, methods: dict[str, MethodSummary]) -> str:
    own, us = methods[ours].measures[name], label_of(ours)
    rivals = {label: method for label, method in methods.items() if name in method.against}
    said = f"over {where} {us} reaches {points(own.value):.1f}"
    if not rivals:
        return f"{said}, with nothing to compare it with"
    # By the difference over the cases that both have, which is what the interval is of.
    best = min(rivals, key=lambda label: rivals[label].against[name].value)
    gap = rivals[best].against[name]
    if gap.value == 0:
        return f"{said}, level with {label_of(best)}"
    chance = "more than chance" if gap.beyond_chance else "which chance may explain"
    told = f"{chance}: {_interval(gap)}"
    if gap.value > 0:
        return f"{said} and is best, {points(gap.value):.1f} above {label_of(best)}, the next ({told})"
    beaten = sum(other.against[name].value < 0 for other in rivals.values())
    return (
        f"{said} and loses to {beaten} of {len(rivals)}: {label_of(best)} is best, {points(-gap.value):.1f} above "
        f"{us} ({told})"
    )


def _under_base(summary: SettingSummary, name: str) -> str:
    """The base is no rival, but to be under it is worth a word."""
    measured = {method.label: method.measures[name].value for method in summary.methods if name in method.measures}
    if points(measured.get("base", 0.0)) <= points(measured[summary.ours]):
        return ""
    return f"; the base model is above {label_of(summary.ours)} there, at {points(measured['base']):.1f}"


def _interval(difference: Difference) -> str:
    return f"{_signed(difference.low)} to {_signed(difference.high)}"


def _signed(value: float) -> str:
    shown = points(value)
    return f"{MINUS if shown < 0 else '+' if shown > 0 else ''}{abs(shown):.1f}"
