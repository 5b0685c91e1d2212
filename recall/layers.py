"""The layers of a transformer, found from the model itself: before its block list, the blocks, and after them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from recall.errors import BadInput


@dataclass(frozen=True)
class Layers:
    """Layer 0 is all that comes before the blocks, layer l block l, and what follows the last block belongs to layer L.

    Attributes:
        prefix: dotted name of the block list inside the model, for instance `model.layers`.
        count: L, the number of blocks.
        before: dotted names of the parameters of layer 0.
    """

    prefix: str
    count: int
    before: frozenset[str]

    @property
    def names(self) -> list[str]:
        """L + 1 names, the embeddings first."""
        return ["embeddings", *(f"{self.prefix}.{index}" for index in range(self.count))]

    def of(self, parameter: str) -> int:
        """The layer, 0 to L, whose weights a parameter takes (DESIGN 2, step 6)."""
        if parameter.startswith(f"{self.prefix}."):
            return int(parameter.removeprefix(f"{self.prefix}.").split(".", 1)[0]) + 1
        return 0 if parameter in self.before else self.count


def find_layers(model: nn.Module) -> Layers:
    """Find the block list: the outermost list of like modules that holds the most parameters.

    A parameter that is tied to one before the blocks counts as before them: a tied head follows the embedding.

    Raises:
        BadInput: the model has no list of repeated blocks.
    """
    lists = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _alike(module)
    }
    if not lists:
        raise BadInput(
            f"{type(model).__name__} has no list of repeated blocks, so it has no layers to merge one by one"
        )
    prefix = max(lists, key=lambda name: (lists[name], -name.count(".")))
    first_block = next(name for name, _ in model.named_parameters() if name.startswith(f"{prefix}."))
    unique = [name for name, _ in model.named_parameters()]
    early = {id(model.get_parameter(name)) for name in unique[: unique.index(first_block)]}
    before = {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in early}
    return Layers(prefix, len(blocks(model, prefix)), frozenset(before))


def blocks(model: nn.Module, prefix: str) -> nn.ModuleList:
    """The block list under its dotted name."""
    found = model.get_submodule(prefix)
    assert isinstance(found, nn.ModuleList)
    return found


def _alike(modules: nn.ModuleList) -> bool:
    kinds = Counter(type(module) for module in modules)
    return len(kinds) == 1
