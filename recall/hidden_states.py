"""Hidden states pooled as they leave each layer, for any transformer: hooks on its blocks, one vector a sample and row.

Shape suffixes: B batch, T tokens or other positions, E hidden size, R rows (see `recall.layers`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from recall.errors import BadInput
from recall.layers import attention_parts, find_stacks
from recall.running_order import has_decoder

Pooling = Literal["mean", "last", "skip_first"]


class HiddenStates:
    """What leaves each layer of a model, pooled: row 0 is what enters the first block, then a block's output a row.

    Args:
        model: in evaluation mode.
        pooling: over the positions of a sample: their mean, the last one, or the mean without the first, whose norm is
            massive in many language models; a sample of one position keeps it.
        modules: two rows a block: what leaves its last attention part, and what leaves the block.
        last_layer_only: one row, the last block's.

    Raises:
        BadInput: the model has no layers; or, with `modules`, a block has no attention part.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, pooling: Pooling, modules: bool, last_layer_only: bool
    ) -> None:
        self.model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._pooling = pooling
        blocks = [
            (f"{stack.prefix}.{i}", block) for stack in find_stacks(self.model) for i, block in enumerate(stack.blocks)
        ]
        self._first = None if last_layer_only else blocks[0][1]
        self._sources = [
            source
            for path, block in (blocks[-1:] if last_layer_only else blocks)
            for source in ([_attention_part(path, block), block] if modules and not last_layer_only else [block])
        ]
        # Without its output head, whose logits nobody needs here.
        self._backbone = cast(Any, self.model).base_model
        self._takes_cache = "use_cache" in inspect.signature(type(self._backbone).forward).parameters
        self.has_decoder = has_decoder(self.model)

    @torch.inference_mode()
    def read(self, inputs: dict[str, Tensor], mask_BT: Tensor | None = None) -> Tensor:
        """Run one batch.

        Args:
            inputs: what the model's forward takes, batch first.
            mask_BT: 1 at every position that counts, in front; without it all positions count.

        Returns:
            float32 `(R, B, E)` on the CPU; the sums run in float32, whatever the model's type.

        Raises:
            BadInput: the layers' outputs have different sizes, or one of them did not run.
        """
        kept_BT1 = None if mask_BT is None else _kept(mask_BT, self._pooling)
        pooled: dict[int, Tensor] = {}

        def pool(row: int, hidden_BTE: Tensor) -> None:
            weights_BT1 = (
                _kept(hidden_BTE.new_ones(hidden_BTE.shape[:2]), self._pooling) if kept_BT1 is None else kept_BT1
            )
            pooled[row] = (hidden_BTE.float() * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)

        cache = {"use_cache": False} if self._takes_cache else {}
        with _hooks(self._first, self._sources, pool), _no_head(self.model, self._backbone):
            self._backbone(**inputs, **cache)
        count = len(self._sources) + (self._first is not None)
        sizes = {pooled_BE.shape[-1] for pooled_BE in pooled.values()}
        if len(pooled) != count or len(sizes) != 1:
            raise BadInput(
                f"{type(self.model).__name__} gives {len(pooled)} of its {count} layers' outputs, of hidden sizes "
                f"{sorted(sizes)}; representations need all, of one size"
            )
        return torch.stack([pooled[row] for row in range(count)]).cpu()


def _attention_part(path: str, block: nn.Module) -> nn.Module:
    parts = attention_parts(block)
    if not parts:
        raise BadInput(f"{path} has no part that is named for attention; use granularity layer, not module")
    return block.get_submodule(parts[-1])


def _kept(mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """The weight of every position, float32 `(B, T, 1)`; the positions that count come first in each row."""
    kept_BT = mask_BT.float()
    if pooling == "last":
        last_B1 = mask_BT.long().sum(dim=1, keepdim=True) - 1
        kept_BT = torch.zeros_like(kept_BT).scatter_(1, last_B1, 1.0)
    elif pooling == "skip_first":
        kept_BT = kept_BT.clone()
        kept_BT[:, 0] = (mask_BT.long().sum(dim=1) == 1).float()
    return kept_BT.unsqueeze(-1)


@contextmanager
def _hooks(first: nn.Module | None, sources: list[nn.Module], pool: Any) -> Iterator[None]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pool(0, args[0] if args else kwargs["hidden_states"])

    def after(row: int) -> Any:
        return lambda _, __, output: pool(row, output if isinstance(output, Tensor) else output[0])

    handles: list[RemovableHandle] = []
    try:
        if first is not None:
            handles.append(first.register_forward_pre_hook(before, with_kwargs=True))
        for row, source in enumerate(sources, start=len(handles)):
            handles.append(source.register_forward_hook(after(row)))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _HeadReachedError(Exception):
    """All hidden states have been seen; what follows would be thrown away."""


@contextmanager
def _no_head(model: PreTrainedModel, backbone: PreTrainedModel) -> Iterator[None]:
    """Stop before the output head of a model that has no backbone of its own, as T5's."""
    head = model.get_output_embeddings() if backbone is model else None
    if head is None:
        yield
        return

    def stop(*_: object) -> None:
        raise _HeadReachedError

    handle = head.register_forward_pre_hook(stop)
    try:
        with suppress(_HeadReachedError):
            yield
    finally:
        handle.remove()
