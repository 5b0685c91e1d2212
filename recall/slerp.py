"""Spherical interpolation between two models, tensor by tensor (Shoemake 1985)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from recall.buffers import Buffers
from recall.chunks import Lanes, Slice, slices
from recall.errors import BadInput
from recall.merging import Combine, Method, in_threads
from recall.pool import Pool
from recall.task_vectors import member_chunk
from recall.tensor_files import FLOATS

# Nearer to parallel than this the arc is a straight line within rounding.
PARALLEL = 0.9995


def slerp(fraction: float) -> Method:
    """theta = sin((1-t) omega) / sin(omega) theta_0 + sin(t omega) / sin(omega) theta_1, t = `fraction`.

    omega is the angle between the two models' tensors, each taken as one vector; nearly parallel ones are interpolated
    linearly.

    Raises:
        BadInput: the pool has more than two models, or fewer.
    """

    def method(pool: Pool, lanes: Lanes) -> Combine:
        if len(pool.members) != 2:
            raise BadInput(f"SLERP goes between two models, but {len(pool.members)} were given; choose another method")
        shares = _shares(pool, fraction, lanes)

        def combine(part: Slice, buffers: Buffers) -> Tensor:
            first, second = shares[part.name]
            return member_chunk(pool, 0, part, buffers).mul_(first).add_(
                member_chunk(pool, 1, part, buffers), alpha=second
            )  # fmt: skip

        return combine

    return method


def _shares(pool: Pool, fraction: float, lanes: Lanes) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    parts = {name: list(slices(name, spec, lanes.chunk)) for name, spec in pool.specs.items() if spec.dtype in FLOATS}

    def start() -> Callable[[str], None]:
        buffers = Buffers(max(part.stop - part.start for chunks in parts.values() for part in chunks))

        def work(name: str) -> None:
            products = torch.zeros(3, dtype=torch.float64)
            for part in parts[name]:
                first_n, second_n = (member_chunk(pool, number, part, buffers).double() for number in (0, 1))
                products += torch.stack([first_n @ second_n, first_n @ first_n, second_n @ second_n])
            dot, first, second = products.tolist()
            found[name] = arc(dot / math.sqrt(first * second) if first and second else 1.0, fraction)

        return work

    in_threads([name for name in parts if parts[name]], start, lanes.threads, "angles")
    return found


def arc(cosine: float, fraction: float) -> tuple[float, float]:
    """How much of each end makes up the point at `fraction` of the arc between two vectors of a given cosine."""
    if abs(cosine) > PARALLEL:
        return 1 - fraction, fraction
    angle = math.acos(cosine)
    return math.sin((1 - fraction) * angle) / math.sin(angle), math.sin(fraction * angle) / math.sin(angle)
