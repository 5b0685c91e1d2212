"""Names and texts of others in Markdown: shown as they are, never taken for markup."""

from __future__ import annotations

import html
import re

SPECIAL = re.compile(r"([\\`*_\[\]|~])")
# What at a line's start makes it a heading, a list or a rule.
AT_START = re.compile(r"^(\d*)([#+=.)-])")


def escaped(text: str) -> str:
    """Text for a paragraph, a heading or a table's cell: one line in which nothing is Markdown or HTML."""
    inline = SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))
    return AT_START.sub(r"\1\\\2", inline)


def code(text: str) -> str:
    """Text for between backticks: one line without any."""
    return " ".join(text.split()).replace("`", "'")
