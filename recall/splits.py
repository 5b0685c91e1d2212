"""Which split an input belongs to, and in which order inputs stand: both follow from a hash of the input alone.

So prepared files are the same on every machine and under every version of Python, no input is in two splits, not even
in those of two learning tasks, and a changed row count moves no input from one split to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

from recall.learning_tasks import Split

T = TypeVar("T")
SHARES: Mapping[Split, float] = MappingProxyType({"train": 0.65, "validation": 0.10, "test": 0.25})


def split_of(text: str, shares: Mapping[Split, float] = SHARES) -> Split:
    """The split of an input, drawn by SHA-256 of its text with probabilities `shares` (which sum to 1)."""
    draw = int(_digest(text)[:8], 16) / 2**32
    if draw < shares["test"]:
        return "test"
    return "validation" if draw < shares["test"] + shares["validation"] else "train"


def shuffled(items: Iterable[T], key: Callable[[T], str]) -> list[T]:
    """`items` in an order that looks random and depends on nothing but their keys."""
    return sorted(items, key=lambda item: _digest("order:" + key(item)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
