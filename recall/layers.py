"""The layers of a transformer, found from the model itself: its stacks of blocks, what comes before and what after.

A model has one stack (decoder-only, encoder-only) or several (encoder and decoder); their blocks are numbered through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from recall.errors import BadInput
from recall.running_order import running_order

ATTENTION = re.compile("attn|attention", re.IGNORECASE)


@dataclass(frozen=True)
class Layers:
    """The rows of a weight matrix, and the row of every tensor.

    Row 0 is all that comes before a stack's blocks, then every block has a row (or two, attention and the rest); what
    follows a stack belongs to its last block (docs/method.md, step 6).

    Attributes:
        names: R names, "embeddings" first.
        rows: the row of every known tensor, by name; tied tensors have the same one.
        model: the model's class, for messages.
    """

    names: list[str]
    rows: Mapping[str, int]
    model: str

    @property
    def count(self) -> int:
        """R - 1: the number of blocks, or twice that with attention and MLP apart."""
        return len(self.names) - 1

    def of(self, tensor: str) -> int:
        """The row whose weights a tensor takes.

        Raises:
            BadInput: it belongs to no row, see `find`.
        """
        row = self.find(tensor)
        if row is None:
            raise BadInput(f"tensor {tensor} belongs to no layer of {self.model}, so it cannot be merged")
        return row

    def find(self, tensor: str) -> int | None:
        """The row of a tensor; one that the model does not know goes with the longest module path that they share.

        None if they share none, or a module whose tensors are in several rows.
        """
        if tensor in self.rows:
            return self.rows[tensor]
        shared = next((path for path in _ancestors(tensor) if path in self._paths), None)
        return None if shared is None else self._paths[shared]

    @cached_property
    def _paths(self) -> dict[str, int | None]:
        rows: dict[str, set[int]] = {}
        for name, row in self.rows.items():
            for path in _ancestors(name):
                rows.setdefault(path, set()).add(row)
        return {path: found.pop() if len(found) == 1 else None for path, found in rows.items()}


@dataclass(frozen=True)
class Stack:
    """A list of repeated blocks and its dotted name, for instance `model.layers`."""

    prefix: str
    blocks: Sequence[nn.Module]

    def block_of(self, tensor: str) -> int | None:
        """The number of the block that a tensor lies in, if it lies in one."""
        if not tensor.startswith(f"{self.prefix}."):
            return None
        return int(tensor.removeprefix(f"{self.prefix}.").split(".", 1)[0])


def find_layers(model: nn.Module, modules: bool = False) -> Layers:
    """Find the stacks, and the row of every parameter and buffer.

    What is not in a block is before or after one by the order in which the model uses it (`recall.running_order`). So a
    tied head follows the embedding. Between two stacks it belongs to the one that it shares the longer path with.

    Args:
        model: on any device; no weight is read.
        modules: two rows a block: `<block>.attention` is what the block uses up to and including its last attention
            part (norms before it and cross attention included), `<block>.mlp` the rest.

    Raises:
        BadInput: the model has no list of repeated blocks; or, with `modules`, a block has no attention part.
    """
    stacks = find_stacks(model)
    order = running_order(model)
    parts = ("attention", "mlp") if modules else ("",)
    blocks = [f"{stack.prefix}.{index}" for stack in stacks for index in range(len(stack.blocks))]
    names = ["embeddings", *(".".join(filter(None, (block, part))) for block in blocks for part in parts)]
    rows = _rows(order, stacks, len(parts))
    if modules:
        for name in _attention_tensors([group[0] for group in order], stacks):
            rows[name] -= 1
    return Layers(names, {name: rows[group[0]] for group in order for name in group}, type(model).__name__)


def find_stacks(model: nn.Module) -> list[Stack]:
    """The outermost lists of like blocks: the one with the most parameters, and all others with attention in them.

    Raises:
        BadInput: there is none; or the parts of a block lie in several lists, as XLM's.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = {name: blocks for name, blocks in lists.items() if not any(path in lists for path in _ancestors(name))}
    repeated = {name: blocks for name, blocks in outermost.items() if _alike(blocks) or attention_parts(blocks)}
    if not repeated:
        raise BadInput(
            f"{type(model).__name__} has no list of repeated blocks, so it has no layers to merge one by one"
        )
    largest = max(repeated, key=lambda name: sum(parameter.numel() for parameter in repeated[name].parameters()))
    for name, blocks in outermost.items():
        beside = name != largest and name.rpartition(".")[0] == largest.rpartition(".")[0]
        if beside and 1 < len(blocks) == len(outermost[largest]) and any(p.dim() > 1 for p in blocks.parameters()):
            raise BadInput(f"{type(model).__name__} spreads its blocks over {largest} and {name}; it cannot be merged")
    return [
        Stack(name, list(blocks)) for name, blocks in repeated.items() if name == largest or attention_parts(blocks)
    ]


def attention_parts(block: nn.Module) -> list[str]:
    """The outermost modules named for attention inside a block, in order; norms, which hold no matrix, are none."""
    found: list[str] = []
    for path, module in block.named_modules():
        is_inside = any(outer in found for outer in _ancestors(path))
        if ATTENTION.search(path.rpartition(".")[2]) and not is_inside:
            found += [path] * any(parameter.dim() > 1 for parameter in module.parameters())
    return found


def _rows(order: list[list[str]], stacks: list[Stack], parts: int) -> dict[str, int]:
    """The row of the first name of every group; the last of a block's rows where it has several."""
    # The last row of the stacks before each one.
    ends = [parts * sum(len(stack.blocks) for stack in stacks[:number]) for number in range(len(stacks) + 1)]
    begun: list[int] = []
    waiting = _order_of_stacks(order, stacks)
    rows = {}
    for name, *_ in order:
        home = _home(name, stacks)
        if home is not None:
            number, block = home
            rows[name] = ends[number] + parts * (block + 1)
            if number in waiting:
                begun.append(waiting.pop(waiting.index(number)))
        elif not begun or (waiting and _shared(name, stacks[waiting[0]]) > _shared(name, stacks[begun[-1]])):
            rows[name] = 0
        else:
            rows[name] = ends[begun[-1] + 1]
    return rows


def _order_of_stacks(order: list[list[str]], stacks: list[Stack]) -> list[int]:
    homes = [_home(name, stacks) for name, *_ in order]
    return list(dict.fromkeys(home[0] for home in homes if home))


def _home(tensor: str, stacks: list[Stack]) -> tuple[int, int] | None:
    """The numbers of the stack and the block that a tensor lies in."""
    for number, stack in enumerate(stacks):
        block = stack.block_of(tensor)
        if block is not None:
            return number, block
    return None


def _attention_tensors(order: list[str], stacks: list[Stack]) -> list[str]:
    """What each block uses up to and including its last attention part."""
    found = []
    for stack in stacks:
        for index, block in enumerate(stack.blocks):
            path = f"{stack.prefix}.{index}"
            inside = [name for name in order if name.startswith(f"{path}.")]
            parts = tuple(f"{path}.{part}." for part in attention_parts(block))
            last = max((place for place, name in enumerate(inside) if name.startswith(parts)), default=None)
            if last is None:
                raise BadInput(f"{path} has no part that is named for attention; use granularity layer, not module")
            found += inside[: last + 1]
    return found


def _shared(tensor: str, stack: Stack) -> int:
    """How many leading path components a tensor and a stack share."""
    pairs = zip(tensor.split("."), stack.prefix.split("."), strict=False)
    return next((depth for depth, (one, other) in enumerate(pairs) if one != other), 0)


def _ancestors(name: str) -> list[str]:
    """Every module path that a name lies in, the longest first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def _alike(blocks: nn.ModuleList) -> bool:
    return len({type(block) for block in blocks}) == 1
