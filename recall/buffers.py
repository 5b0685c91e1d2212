"""One thread's memory for the chunks of a merge, and the way of a chunk to a device and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recall.chunks import Slice
from recall.tensor_files import ITEM_BYTES, TensorFolder
from recall.torch_types import TORCH_TYPES


class Buffers:
    """Room for chunks of `size` elements: bytes as read, an input as floats, the sum, the sum rounded.

    With a `device`, floats and sum lie there. What is read goes there from pinned memory, which a GPU fetches by
    itself, and from two places in turns, so that the next model is read meanwhile; all of it on a stream of the
    thread's own, so that one thread's copies run beside another's arithmetic. Made in the thread that uses it.

    Args:
        item_bytes: of the widest type of element that is read or written.
    """

    def __init__(self, size: int, item_bytes: int = 8, device: torch.device | None = None) -> None:
        self.device = device
        self._stream = None
        if device and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            torch.cuda.set_stream(self._stream)
        places = 2 if device else 1
        self._arrived = [torch.cuda.Event() for _ in range(places) if self._stream]  # type: ignore[no-untyped-call]
        self._place = 0
        # What is never touched takes no memory, unless it is pinned.
        self._read = [self._host(size * item_bytes) for _ in range(places)]
        self._written = self._host(size * item_bytes)
        self._stored = torch.empty(size * item_bytes if device else 0, dtype=torch.uint8, device=device)
        self._float = torch.empty(size, device=device)
        self._total = torch.empty(size * 2, device=device)

    def read(self, folder: TensorFolder, part: Slice) -> Tensor:
        """A slice of a tensor as float32 (float64 if it is stored so); valid until the next call."""
        dtype = folder.specs[part.name].dtype
        count = part.stop - part.start
        size = count * ITEM_BYTES[dtype]
        self._place = (self._place + 1) % len(self._read)
        if self._arrived:
            self._arrived[self._place].synchronize()
        read = self._read[self._place][:size]
        folder.read_into(part.name, part.start, _bytes(read))
        stored_n = self._on_device(read).view(TORCH_TYPES[dtype])
        if dtype in ("F64", "F32"):
            return stored_n
        return self._float[:count].copy_(stored_n)

    def total(self, like_n: Tensor) -> Tensor:
        """The accumulator, in the type and size of `like_n`."""
        return self._total.view(like_n.dtype)[: len(like_n)]

    def rounded(self, total_n: Tensor, dtype: str) -> memoryview:
        """The bytes of `total_n` rounded to `dtype`; valid until the next call."""
        written = self._written[: len(total_n) * ITEM_BYTES[dtype]]
        rounded_n = total_n.to(TORCH_TYPES[dtype]) if self.device else total_n
        written.view(TORCH_TYPES[dtype]).copy_(rounded_n, non_blocking=True)
        self.wait()
        return _bytes(written)

    def wait(self) -> None:
        """Wait until all that this thread has asked of the device is done."""
        if self._stream:
            self._stream.synchronize()

    def _host(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)

    def _on_device(self, read: Tensor) -> Tensor:
        if not self.device:
            return read
        stored = self._stored[: len(read)].copy_(read, non_blocking=True)
        if self._arrived:
            self._arrived[self._place].record()
        return stored


def _bytes(host: Tensor) -> memoryview:
    content: np.ndarray = host.numpy()
    return memoryview(content.data)
