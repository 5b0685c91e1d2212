"""One progress bar a stage: rich on a terminal, one plain line where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
console = Console(stderr=True)


def track(items: Iterable[T], what: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Yield `items` while showing how many of `total` are done and the time left.

    `done` items were finished by an earlier, interrupted process; they count as done at once.
    """
    if not console.is_terminal:
        started = time.monotonic()
        yield from items
        console.print(f"{what}: {time.monotonic() - started:.1f} s", highlight=False, soft_wrap=True)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(what, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(bar)
