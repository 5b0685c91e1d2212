"""The model card of a merged model: what it was made from, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from recall.markdown import code, escaped

if TYPE_CHECKING:
    from recall.merge_request import MergeRecord


def model_card(record: MergeRecord, name: str) -> str:
    """Markdown with the front matter that the Hugging Face hub reads."""
    templates = Environment(
        loader=PackageLoader("recall"), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    templates.filters |= {"escaped": escaped, "code": code}
    return templates.get_template("model_card.md.j2").render(
        name=name,
        record=record,
        settings=record.settings,
        rows=list(zip(record.layers, record.weights, strict=True)) if record.weights else [],
    )
