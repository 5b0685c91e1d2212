"""Text of others (names of models, folders, learning tasks) is shown as it is: never HTML, Markdown, YAML or markup."""

import re

import pytest
import yaml
from markdown_it import MarkdownIt
from test_report import Page, named

from flows import outputs
from recall.gates import Verdict
from recall.gates_table import markdown
from recall.markdown import code, escaped
from recall.merge_request import MergeRecord
from recall.model_card import model_card
from recall.report import render

EVIL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/pixel)",
    "a | b",
    "`code` ``more``",
    "two\nlines\n\n# heading\n- item",
    "**bold** _and_ ~~gone~~",
    "&lt;b&gt;",
    "[/] [red]",
    "# heading",
    "- item",
    "+ item",
    "1. one",
    "2) two",
    "---",
    "===",
    "> quoted",
    "~~~ code",
]


def rendered(text):
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    return Page(f"<html>{html}</html>")


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("text", EVIL)
def test_in_markdown_it_is_the_same_text_and_no_more(text):
    page = rendered(f"# {escaped(text)}\n\n| {escaped(text)} |\n|---|\n| {escaped(text)} |\n")
    assert {tag for tag, _ in page.elements} == {"html", "h1", "table", "thead", "tr", "th", "tbody", "td"}
    assert [word for word in map(words, page.words) if word] == [words(text)] * 3


@pytest.mark.parametrize("text", EVIL)
def test_at_the_start_of_a_line_it_is_a_paragraph(text):
    page = rendered(f"above\n{escaped(text)}\n\n{escaped(text)}\n")
    assert {tag for tag, _ in page.elements} == {"html", "p"}
    assert [line for line in words("".join(page.words)).split("above") if line] == [f" {words(text)} {words(text)}"]


@pytest.mark.parametrize("text", EVIL)
def test_in_a_verdict_on_prefects_pages_it_is_text(text):
    given = Verdict(version=text, champion=None, outcome="fail", refusals=[text], gates=[], confidence=0.95,
                    resamples=1, seed=0)  # fmt: skip
    elements = {tag for tag, _ in rendered(markdown(text, given)).elements}
    assert elements == {"html", "h1", "p", "table", "thead", "tr", "th"}


@pytest.mark.parametrize("text", EVIL)
def test_in_markdown_code_it_stays_code(text):
    page = rendered(f"1. `{code(text)}`")
    assert {tag for tag, _ in page.elements} == {"html", "ol", "li", "code"}


@pytest.mark.parametrize("text", EVIL)
def test_in_the_report_it_is_text(text):
    plain, evil = Page(render(named("plain"))), Page(render(named(text)))
    assert [tag for tag, _ in evil.elements] == [tag for tag, _ in plain.elements]
    assert not any(key.startswith("on") for _, found in evil.elements for key in found)
    assert words(text) in words("".join(evil.words))


@pytest.mark.parametrize("text", EVIL)
def test_in_prefects_artifact_it_is_text(text, monkeypatch):
    """Names are checked long before; the page must not depend on that."""
    made = {}
    monkeypatch.setattr(outputs, "create_markdown_artifact", lambda markdown, **_: made.update(page=markdown))
    monkeypatch.setattr(outputs, "create_table_artifact", lambda *_, **__: None)
    outputs._prefect_artifacts(named(text), [f"RECALL on {text}"])
    elements = {tag for tag, _ in rendered(made["page"]).elements}
    assert elements == {"html", "h1", "p", "table", "thead", "tr", "th", "tbody", "td"}


def card_of(name):
    record = MergeRecord(
        layers=["embeddings"],
        models=[name, name],
        weights=[[0.5, 0.5]],
        similarities=[[1.0, 1.0]],
        sigma=[1.0],
        settings={"as_adapter": False, "method": "recall", "weights": None, "rank": None},
        inputs=[],
        tensor_layers={},
        samples=3,
        warnings=[name],
    )
    return model_card(record, name)


@pytest.mark.parametrize("text", EVIL)
def test_in_the_model_card_it_is_text(text):
    card = card_of(text)
    _, head, body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    assert yaml.safe_load(head)["base_model"][0] == text
    elements = [tag for tag, _ in rendered(body).elements]
    assert not set(elements) & {"script", "img", "b", "del", "h2"}
    assert elements.count("h1") == 1
