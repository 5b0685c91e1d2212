"""Second moments of what enters each linear map of a model, over typical samples: what RegMean keeps of an expert.

No text is kept, only a matrix a map. Shapes: P prompts, B batch, T tokens, E hidden size, I inputs and O outputs of a
map, n tokens that are no padding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from recall.encoding import shortened
from recall.errors import BadInput, one_line
from recall.merge_settings import MomentsWeighting
from recall.progress import track
from recall.save_tensors import save_tensors

# What a matrix of a given rank is kept as, behind its name.
FACTOR, REST = ".factor", ".rest"


@dataclass(frozen=True)
class Moments:
    """G, the mean of x x^T as `weighting` counts them (`second_moments`), `(I, I)` float32, by the name of x's weight.

    Maps that read the same x (query, key and value, say) share one matrix: `shared` gives each weight the name under
    which `matrix` has it. `transposed` are the weights that the checkpoint keeps as (inputs, outputs), `inputs` the
    size I of every matrix.
    """

    matrix: Callable[[str], Tensor]
    shared: dict[str, str]
    transposed: frozenset[str]
    inputs: dict[str, int]
    tokens: int
    weighting: MomentsWeighting = "uniform"

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
        if self.weighting != "uniform":  # which files from before there was a choice do not say
            facts["weighting"] = self.weighting
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
    weighting: MomentsWeighting = "uniform",
    what: str = "moments",
) -> Moments:
    """The second moments of the inputs of every linear map but the output head (RegMean, Jin et al. 2023, section 3.1).

    With `weighting="response"`, which is ours, an input x_t counts as much as what an answer is read from responds to
    it (docs/merge.md): of one map G = mean over prompts of sum_t (||J_t||^2 / ||h||^2) x_t x_t^T, where h is the last
    token's final hidden state and J_t its derivative by what the map gives out at token t. ||J_t||^2 is estimated by
    ||J_t^T v||^2 for one direction v a prompt (Hutchinson 1989), the same in every call. Maps that read the same share
    the sum of theirs.

    Args:
        prompts: P texts; one longer than `max_tokens` loses its beginning.
        batch_size: how many are read together; with `response` all their hidden states are in memory at once.

    Raises:
        BadInput: `response` is asked of a model that does not go on from a text's last token.
    """
    body: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if weighting == "response" and not body.can_generate():
        raise BadInput(f"{type(body).__name__} writes no text, which moments weighted by response need; take uniform")
    tokens = [shortened(tokenizer(prompt).input_ids, max_tokens, tokenizer) for prompt in prompts]
    tokens.sort(key=len)
    batches = [tokens[start : start + batch_size] for start in range(0, len(tokens), batch_size)]
    bar = track(batches, what, total=len(batches))
    if weighting == "uniform":
        with _uniform_hooks(body) as sums:
            for batch in bar:
                _forward(body, batch, sums)
    else:
        # As wide as what the head reads, which is what the body gives out.
        width = body.get_output_embeddings().weight.shape[1]
        directions_PE = torch.randn((len(tokens), width), generator=torch.Generator().manual_seed(0))
        with _response_hooks(body) as sums:
            for batch, directions_BE in zip(bar, torch.split(directions_PE, batch_size), strict=True):
                _respond(body, batch, directions_BE, sums)
    count = sum(map(len, tokens))
    of = count if weighting == "uniform" else len(tokens)
    means = {name: total_II / of for name, total_II in sums.totals.items()}
    inputs = {name: len(mean_II) for name, mean_II in means.items()}
    return Moments(means.__getitem__, sums.shared, frozenset(sums.transposed), inputs, count, weighting)


class _Sums:
    def __init__(self) -> None:
        self.mask_BT = torch.empty(0)
        self.totals: dict[str, Tensor] = {}
        self.shared: dict[str, str] = {}
        self.transposed: set[str] = set()
        self._last: tuple[Tensor, str] | None = None

    def meets(self, weight: str, hidden_BTI: Tensor) -> bool:
        """Note what a map reads; False where a map before it reads the same, or where it is not a row a token."""
        if hidden_BTI.shape[:-1].numel() != self.mask_BT.numel():  # a pooler reads one row a text
            self.forget(weight)
            return False
        # The very same tensor as before: kept alive here, so that its identity says so.
        if self._last is not None and self._last[0] is hidden_BTI:
            self.shared[weight] = self._last[1]
            return False
        self._last = hidden_BTI, weight
        self.shared[weight] = weight
        return True

    def forget(self, weight: str) -> None:
        """A map that has no moments; a batch of one token a text may have given it some."""
        self.shared.pop(weight, None)
        self.totals.pop(weight, None)

    def rows(self, hidden_BTI: Tensor) -> Tensor:
        """The tokens that are no padding, `(n, I)`; some models (OPT) lay all tokens of a batch in one row."""
        return hidden_BTI.reshape(*self.mask_BT.shape, -1)[self.mask_BT]

    def add(self, weight: str, rows_nI: Tensor) -> None:
        moment_II, name = (rows_nI.T @ rows_nI).cpu(), self.shared[weight]
        self.totals[name] = self.totals[name] + moment_II if name in self.totals else moment_II


def _padded(body: Any, rows: list[list[int]], sums: _Sums) -> Tensor:
    width = max(map(len, rows))
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=body.device)
    sums.mask_BT = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows], device=body.device)
    return ids_BT


@torch.inference_mode()
def _forward(body: Any, rows: list[list[int]], sums: _Sums) -> None:
    ids_BT = _padded(body, rows, sums)
    body.base_model(input_ids=ids_BT, attention_mask=sums.mask_BT.long(), use_cache=False)


@torch.enable_grad()
def _respond(body: Any, rows: list[list[int]], directions_BE: Tensor, sums: _Sums) -> None:
    """Backward to the embeddings, and no gradient of any weight: each map's hook sees that of what it gave out."""
    ids_BT = _padded(body, rows, sums)
    embedded: list[Tensor] = []
    handle = body.get_input_embeddings().register_forward_hook(
        lambda _, __, output: embedded.append(output if output.requires_grad else output.requires_grad_())
    )
    try:
        hidden_BTE = body.base_model(
            input_ids=ids_BT, attention_mask=sums.mask_BT.long(), use_cache=False
        ).last_hidden_state
    finally:
        handle.remove()
    last_BE = hidden_BTE[torch.arange(len(rows)), sums.mask_BT.sum(dim=1) - 1].float()
    relative_BE = last_BE / last_BE.detach().norm(dim=1, keepdim=True)
    torch.autograd.grad((relative_BE * directions_BE.to(last_BE.device)).sum(), embedded[0])


def _uniform_hooks(body: nn.Module) -> AbstractContextManager[_Sums]:
    """Every input of a map counts alike."""

    def hook(sums: _Sums, weight: str) -> Callable[..., None]:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if sums.meets(weight, args[0]):
                sums.add(weight, sums.rows(args[0]).float())

        return before

    return _hooked(body, lambda module, sums, weight: module.register_forward_pre_hook(hook(sums, weight)))


def _response_hooks(body: nn.Module) -> AbstractContextManager[_Sums]:
    """An input counts as much as the squared gradient of what its map makes of it."""

    def hook(sums: _Sums, weight: str) -> Callable[..., None]:
        def after(_: nn.Module, args: tuple[Tensor, ...], output_BTO: Tensor) -> None:
            sums.meets(weight, args[0])
            if weight not in sums.shared or not output_BTO.requires_grad:
                return
            hidden_BTI = args[0].detach()

            def respond(gradient_BTO: Tensor) -> None:
                rows_nI = sums.rows(hidden_BTI).float()
                sums.add(weight, rows_nI * sums.rows(gradient_BTO).float().norm(dim=1, keepdim=True))

            output_BTO.register_hook(respond)  # type: ignore[no-untyped-call]

        return after

    return _hooked(body, lambda module, sums, weight: module.register_forward_hook(hook(sums, weight)))


@contextmanager
def _hooked(body: nn.Module, register: Callable[[nn.Module, _Sums, str], RemovableHandle]) -> Iterator[_Sums]:
    sums, handles = _Sums(), []
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name:
            weight = f"{name.removesuffix('.base_layer')}.weight"
            handles.append(register(module, sums, weight))
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

        return Moments(
            matrix,
            facts["shared"],
            frozenset(facts["transposed"]),
            facts["inputs"],
            facts["tokens"],
            facts.get("weighting", "uniform"),
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} holds no moments ({one_line(error)}); make it again with `recall moments`") from error
