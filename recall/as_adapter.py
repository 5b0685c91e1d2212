"""A pool of LoRA adapters merged into one adapter: factors side by side, of rank sum(r), or less by SVD.

PEFT's own `add_weighted_adapter` has no weights per layer, and its `linear` mixes the A of one adapter with the B of
another. Shape suffixes: O rows, I columns, R rank of all adapters together, r rank that is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recall.errors import BadInput
from recall.lora import FACTORS, PREFIX, LoraAdapter
from recall.merging import WeightedSum
from recall.model_sources import HUB_ID
from recall.pool import Pool
from recall.progress import track
from recall.save_tensors import save_tensors


def write_adapter(
    pool: Pool, weights_RK: np.ndarray, row_of: Callable[[str], int], out: Path, rank: int | None = None
) -> float:
    """Write theta - theta_0 of the weighted sum of `pool` as one PEFT adapter over the base that its members share.

    Args:
        weights_RK: as for `recall.merging.merge`.
        rank: the rank of the adapter; by default the sum of the members' ranks, which is exact.

    Returns:
        The relative error of the difference, ||D - D'||_F / ||D||_F over all tensors; 0 without `rank`.

    Raises:
        BadInput: not all members lie over one base, or none is an adapter.
        OSError: `out` cannot be written.
    """
    adapters = check_adapters(pool)
    combine = WeightedSum(pool, weights_RK, row_of)
    targets = list(dict.fromkeys(target for adapter in adapters for target in adapter.targets))
    largest = max(sum(a.rank(target) for a in adapters if a.changes(target)) for target in targets)
    keep = min(rank or largest, largest)
    state: dict[str, Tensor] = {}
    lost = whole = 0.0
    for target in track(targets, "merge adapters", total=len(targets)):
        left_OR, right_RI = combine.low_rank(target) or _nothing(pool, target)
        left_Or, right_rI, tensor_lost, tensor_whole = reduce_rank(left_OR, right_RI, keep)
        if not (left_Or.isfinite().all() and right_rI.isfinite().all()):
            broken = next((a for a in adapters if a.changes(target) and not a.is_finite(target)), adapters[0])
            raise BadInput(f"tensor {target} holds NaN or Inf in adapter {broken.folder}; leave out that model")
        lost, whole = lost + tensor_lost, whole + tensor_whole
        state |= _factors(next(a.factor_names(target) for a in adapters if a.changes(target)), left_Or, right_rI,
                          any(a.is_transposed(target) for a in adapters))  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(state, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = dict(adapters[0].config) | {
        "r": keep,
        "lora_alpha": keep,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
        "lora_dropout": 0.0,
        # What these said of the first adapter's modules does not hold for all of them.
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "base_model_name_or_path": _name_of_base(adapters[0].config, pool),
        "target_modules": sorted(name.removeprefix(PREFIX).removesuffix(end) for name in state for end in FACTORS
                                 if name.endswith(end)),
    }  # fmt: skip
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return (lost / whole) ** 0.5 if whole else 0.0


def check_adapters(pool: Pool) -> list[LoraAdapter]:
    """The pool's adapters.

    Raises:
        BadInput: there is none, or not all members lie over one base.
    """
    adapters = [adapter for adapter in pool.adapters if adapter]
    if len(pool.bases) > 1 or not adapters:
        raise BadInput(
            "only adapters of one base can be merged into an adapter; leave out --as-adapter to get full weights"
        )
    return adapters


def reduce_rank(left_OR: Tensor, right_RI: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """The best approximation of `left_OR @ right_RI` of a given rank (Eckart and Young 1936), padded up to it if less.

    Returns:
        left_Or, right_rI, and the squared Frobenius norms of what is lost and of the whole.
    """
    have = left_OR.shape[1]
    if have <= rank:
        padding = rank - have
        padded = torch.nn.functional.pad(left_OR, (0, padding)), torch.nn.functional.pad(right_RI, (0, 0, 0, padding))
        gram_RR = (left_OR.T @ left_OR) * (right_RI @ right_RI.T)
        return *padded, 0.0, gram_RR.sum().item()
    basis_OR, left_RR = torch.linalg.qr(left_OR.double())
    basis_IR, right_RR = torch.linalg.qr(right_RI.double().T)
    turn_RR, values_R, back_RR = torch.linalg.svd(left_RR @ right_RR.T)
    root_r = values_R[:rank].sqrt()
    left_Or = (basis_OR @ turn_RR[:, :rank]) * root_r
    right_rI = root_r[:, None] * (back_RR[:rank] @ basis_IR.T)
    energy_R = values_R.square()
    return left_Or.float(), right_rI.float(), energy_R[rank:].sum().item(), energy_R.sum().item()


def _name_of_base(config: dict[str, Any], pool: Pool) -> str:
    """A hub id as the first adapter states it, else the folder."""
    named = config.get("base_model_name_or_path") or ""
    return named if HUB_ID.match(named) and not Path(named).exists() else str(pool.first.folder.resolve())


def _nothing(pool: Pool, target: str) -> tuple[Tensor, Tensor]:
    rows, columns = pool.specs[target].shape
    return torch.zeros(rows, 0), torch.zeros(0, columns)


def _factors(names: tuple[str, str], left_Or: Tensor, right_rI: Tensor, transposed: bool) -> dict[str, Tensor]:
    low_A, low_B = (left_Or.T, right_rI.T) if transposed else (right_rI, left_Or)
    return {names[0]: low_A.contiguous(), names[1]: low_B.contiguous()}
