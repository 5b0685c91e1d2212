"""No check ends an audit: what it raises becomes a link of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from recall.audit_verdicts import Link
from recall.errors import BadInput, Failed, OutOfReach, one_line, without_secrets

# What code meets that reads something damaged; any other error says nothing about what it was to check.
DAMAGE = (
    BadInput,
    Failed,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
)


def tried(update: int, node: str, name: str, check: Callable[..., Iterable[Link]], *arguments: Any) -> Iterator[Link]:
    """The links that a check yields, and one more where it breaks: failed by damage, else unknown."""
    try:
        yield from check(*arguments)
    except Exception as error:
        yield broken(update, node, name, error)


def broken(update: int, node: str, name: str, error: Exception) -> Link:
    """The link of a check that raised."""
    from safetensors import SafetensorError

    damaged = isinstance(error, (*DAMAGE, SafetensorError)) and not isinstance(error, OutOfReach)
    return Link(
        update=update,
        node=node,
        name=name,
        status="failed" if damaged else "unknown",
        expected="that it can be checked",
        found=sentence(error),
        out_of_reach=not damaged,
    )


def sentence(error: Exception) -> str:
    """An error in words; the errors of others with their type, which is half of what a KeyError says."""
    words = without_secrets(one_line(error))
    return words if isinstance(error, BadInput | Failed) else f"{type(error).__name__}: {words or 'no message'}"
