"""A small cache that threads share: what one of them makes, the others wait for and use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps the `size` values that were asked for last; a value is made once, by the thread that needs it first."""

    def __init__(self, size: int, make: Callable[[str], T]) -> None:
        self._size, self._make = size, make
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, T] = OrderedDict()

    def __call__(self, key: str) -> T:
        """The value of `key`."""
        with self._lock:
            if key not in self._kept:
                # Room first, so that no more than `size` are ever held.
                while len(self._kept) >= self._size:
                    self._kept.popitem(last=False)
                self._kept[key] = self._make(key)
            self._kept.move_to_end(key)
            return self._kept[key]
