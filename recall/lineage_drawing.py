"""Where the boxes and arrows of a drawn lineage go: a row an update, a column a stage, in SVG user units."""

from __future__ import annotations

from dataclasses import dataclass

from recall.audit_verdicts import AuditReport, Status, worst

BOX = (132.0, 44.0)
STEP = (154.0, 92.0)
MARGIN = 12.0
NODES = ("data", "expert", "samples", "representations", "weights", "merged", "scores")
BY_MOMENTS = ("data", "expert", "samples", "representations", "weights", "moments", "merged", "scores")
# A first update by moments compares nothing, a weighted sum has no moments: where there is no link, no box.
NOT_IN_ALL = ("representations", "moments")
LONGEST = 18


@dataclass(frozen=True)
class Box:
    """One node at its top left corner; `tip` is its tooltip."""

    x: float
    y: float
    title: str
    text: str
    status: Status
    tip: str


@dataclass(frozen=True)
class Drawing:
    """Boxes of one size, and the SVG paths of the arrows between them."""

    width: float
    height: float
    box_width: float
    box_height: float
    boxes: list[Box]
    arrows: list[str]


def draw_lineage(report: AuditReport) -> Drawing:
    """The base above, then each update's chain from data to merged model, which the next update starts from."""
    nodes = BY_MOMENTS if any(link.node == "moments" for link in report.links) else NODES
    left = MARGIN + nodes.index("merged") * STEP[0]
    boxes, arrows = [_box(report, 0, "base", left, MARGIN, "base model", "M0")], []
    for row, update in enumerate(report.updates, start=1):
        y = MARGIN + row * STEP[1]
        texts = {
            "data": ", ".join(update.data),
            "expert": update.learning_task,
            "representations": " and ".join(update.pool),
            "merged": f"version {update.version}",
        }
        known = {link.node for link in report.links if link.update == update.position}
        before = 0.0
        for column, node in enumerate(nodes):
            if nodes is BY_MOMENTS and node in NOT_IN_ALL and node not in known:
                continue
            x = MARGIN + column * STEP[0]
            title = f"{update.position}. {node}" if node == "data" else node
            boxes.append(_box(report, update.position, node, x, y, title, texts.get(node, "")))
            if column:
                middle = y + BOX[1] / 2
                arrows.append(f"M{before + BOX[0]:g} {middle:g}H{x - 3:g}")
            before = x
        down = left + BOX[0] / 2
        arrows.append(f"M{down:g} {y - STEP[1] + BOX[1]:g}V{y - 3:g}")
        # The newest expert is trained from the model before, too.
        start, between = MARGIN + STEP[0] + BOX[0] / 2, y - (STEP[1] - BOX[1]) / 2
        arrows.append(f"M{down:g} {between:g}H{start:g}V{y - 3:g}")
    width = 2 * MARGIN + (len(nodes) - 1) * STEP[0] + BOX[0]
    height = 2 * MARGIN + len(report.updates) * STEP[1] + BOX[1]
    return Drawing(width, height, *BOX, boxes, arrows)


def _box(report: AuditReport, update: int, node: str, x: float, y: float, title: str, text: str) -> Box:
    links = [link for link in report.links if link.node == node and (node == "base" or link.update == update)]
    status = worst(link.status for link in links) or "unknown"
    tip = "; ".join(link.sentence for link in links if link.status == status) if status != "ok" else f"{len(links)} ok"
    shown = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return Box(x, y, title, shown, status, f"{title} {text}: {tip}"[:2000])
