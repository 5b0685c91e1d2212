"""Second moments of what enters each linear map of a model, over typical samples: what RegMean keeps of an expert.

No text is kept, only a matrix a map. Shapes: B batch, T tokens, I inputs of a map, n tokens that are no padding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from recall.errors import BadInput, one_line
from recall.progress import track
from recall.save_tensors import save_tensors

# What a matrix of a given rank is kept as, behind its name.
FACTOR, REST = ".factor", ".rest"


@dataclass(frozen=True)
class Moments:
    """G = mean over tokens of x x^T, `(I, I)` float32, by the name of the weight that x enters.

    Maps that read the same x (query, key and value, say) share one matrix: `shared` gives each weight the name under
    which `matrix` has it. `transposed` are the weights that the checkpoint keeps as (inputs, outputs), `inputs` the
    size I of every matrix.
    """

    matrix: Callable[[str], Tensor]
    shared: dict[str, str]
    transposed: frozenset[str]
    inputs: dict[str, int]
    tokens: int

    def __getitem__(self, weight: str) -> Tensor:
        return self.matrix(self.shared[weight])

    def save(self, path: Path, rank: int | None = None) -> None:
        """Write them as safetensors: whole, or of each matrix its `rank` largest directions and the diagonal.

        With a rank, G is kept as F F^T + diag(d): F `(I, rank)` are the largest eigenvectors times the roots of their
        values, and d `(I,)` is what the diagonal lacks, so that every input keeps its own second moment.
        """
        facts = {
            "shared": self.shared,
            "transposed": sorted(self.transposed),
            "inputs": self.inputs,
            "tokens": self.tokens,
        }
        tensors: dict[str, Tensor] = {}
        for name in dict.fromkeys(self.shared.values()):
            gram_II = self.matrix(name)
            if rank is None or rank >= len(gram_II):
                tensors[name] = gram_II
            else:
                tensors[name + FACTOR], tensors[name + REST] = low_rank(gram_II, rank)
        save_tensors(tensors, path, metadata={"moments": json.dumps(facts, sort_keys=True)})


def low_rank(gram_II: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """F_Ir and d_I with G ~ F F^T + diag(d), see `Moments.save`; float32."""
    values_I, vectors_II = torch.linalg.eigh(gram_II.double())
    factor_Ir = vectors_II[:, -rank:] * values_I[-rank:].clamp(min=0).sqrt()
    rest_I = (gram_II.diagonal() - factor_Ir.square().sum(dim=1)).clamp(min=0)
    return factor_Ir.float().contiguous(), rest_I.float()


def second_moments(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int,
    max_tokens: int,
    what: str = "moments",
) -> Moments:
    """The second moments of the inputs of every linear map but the output head (RegMean, Jin et al. 2023, section 3.1).

    Args:
        prompts: P texts; one longer than `max_tokens` loses its beginning.
    """
    tokens = [tokenizer(prompt).input_ids[-max_tokens:] for prompt in prompts]
    tokens.sort(key=len)
    batches = [tokens[start : start + batch_size] for start in range(0, len(tokens), batch_size)]
    body: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    with _summing(body) as sums:
        for batch in track(batches, what, total=len(batches)):
            _forward(body, batch, sums)
    count = sum(map(len, tokens))
    means = {name: total_II / count for name, total_II in sums.totals.items()}
    inputs = {name: len(mean_II) for name, mean_II in means.items()}
    return Moments(means.__getitem__, sums.shared, frozenset(sums.transposed), inputs, count)


class _Sums:
    def __init__(self) -> None:
        self.mask_BT = torch.empty(0)
        self.totals: dict[str, Tensor] = {}
        self.shared: dict[str, str] = {}
        self.transposed: set[str] = set()
        self._last: tuple[Tensor, str] | None = None

    def add(self, weight: str, hidden_BTI: Tensor) -> None:
        # The very same tensor as before: kept alive here, so that its identity says so.
        if self._last is not None and self._last[0] is hidden_BTI:
            self.shared[weight] = self._last[1]
            return
        self._last = hidden_BTI, weight
        self.shared[weight] = weight
        rows_nI = hidden_BTI[self.mask_BT].float()
        moment_II = (rows_nI.T @ rows_nI).cpu()
        self.totals[weight] = self.totals[weight] + moment_II if weight in self.totals else moment_II


@torch.inference_mode()
def _forward(body: Any, rows: list[list[int]], sums: _Sums) -> None:
    width = max(map(len, rows))
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=body.device)
    sums.mask_BT = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows], device=body.device)
    body.base_model(input_ids=ids_BT, attention_mask=sums.mask_BT.long(), use_cache=False)


@contextmanager
def _summing(body: nn.Module) -> Iterator[_Sums]:
    sums = _Sums()

    def hook(weight: str) -> Callable[..., None]:
        return lambda _, args: sums.add(weight, args[0])

    handles = []
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name:
            weight = f"{name.removesuffix('.base_layer')}.weight"
            handles.append(module.register_forward_pre_hook(hook(weight)))
            if isinstance(module, Conv1D):
                sums.transposed.add(weight)
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def read_moments(path: Path) -> Moments:
    """The moments that an expert left behind.

    Raises:
        BadInput: the file is missing or damaged.
    """
    if not path.is_file():
        raise BadInput(f"{path} is missing; make it from the model's typical samples with `recall moments`")
    try:
        # Left open: a matrix is read when it is asked for, so that K experts' moments never lie in memory together.
        file = safe_open(path, framework="pt")
        facts = json.loads(file.metadata()["moments"])
        whole = set(file.keys())

        def matrix(name: str) -> Tensor:
            if name in whole:
                return cast(Tensor, file.get_tensor(name))
            factor_Ir = file.get_tensor(name + FACTOR)
            return cast(Tensor, factor_Ir @ factor_Ir.T + torch.diag(file.get_tensor(name + REST)))

        return Moments(matrix, facts["shared"], frozenset(facts["transposed"]), facts["inputs"], facts["tokens"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} holds no moments ({one_line(error)}); make it again with `recall moments`") from error
