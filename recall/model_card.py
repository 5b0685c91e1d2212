"""Model cards: of a merge on its own, and of a registered version."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from recall.lineage import Lineage
    from recall.merge_request import MergeRecord


def model_card(record: MergeRecord, name: str) -> str:
    """Markdown with the front matter that the Hugging Face hub reads."""
    return (
        _templates()
        .get_template("model_card.md.j2")
        .render(
            name=name,
            record=record,
            settings=record.settings,
            rows=list(zip(record.layers, record.weights, strict=True)) if record.weights else [],
        )
    )


def version_card(lineage: Lineage, stream: str, version: str, learning_tasks: list[str], verdict: str | None) -> str:
    """The card of a registered version, out of its lineage; `verdict` is that of an audit."""
    prefix = "recall/"
    return (
        _templates()
        .get_template("version_card.md.j2")
        .render(
            lineage=lineage,
            stream=stream,
            version=version,
            learning_tasks=learning_tasks,
            scores={
                name.removeprefix(prefix): score
                for name, score in (lineage.metrics or {}).items()
                if name.startswith(prefix)
            },
            verdict=verdict,
        )
    )


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line: no markup, no HTML, no cell or code span that ends early."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("recall"), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    templates.filters["md"] = escape_markdown
    return templates
