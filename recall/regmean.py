"""RegMean: the linear map that is nearest to all experts' on their own inputs, in closed form (Jin et al. 2023).

Shapes: K models, O outputs and I inputs of a map, n elements of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from recall.chunks import Slice
from recall.errors import BadInput
from recall.merging import Buffers, Combine, Method
from recall.moments import Moments, read_moments
from recall.pool import Pool
from recall.task_vectors import member_chunk

# Of the mean of a matrix's diagonal: inputs that no sample uses get the plain average.
RIDGE = 1e-6


def regmean(paths: Sequence[Sequence[Path]], shrink: float = 0.9) -> Method:
    """W = (sum_k W_k G_k) (sum_k G_k)^-1 for every linear map, the plain average for everything else.

    Equation 2 of the paper, with W as (outputs, inputs); G_k are the second moments of expert k's inputs, their
    off-diagonal elements times `shrink` (its section 3.2). Solved in float64, row by row of W, so that the merge is
    streamed as any other; what is held besides is K + 1 matrices of (I, I).

    Args:
        paths: the files of moments of each model, in the pool's order (see `recall.moments`): an expert's own, or
            those of all the experts that a merged model stands for.

    Raises:
        BadInput: a file is missing, or does not fit the model.
    """

    def method(pool: Pool, _: int) -> Combine:
        moments = [[read_moments(path) for path in files] for files in paths]
        _check_fit(pool, [one for group in moments for one in group], [path for files in paths for path in files])
        first = moments[0][0]
        solved = _Solved(pool, moments, shrink)

        def combine(part: Slice, buffers: Buffers) -> Tensor:
            if part.name not in first.shared:
                chunks = [member_chunk(pool, number, part, buffers) for number in range(len(pool.members))]
                return torch.stack(chunks).mean(dim=0)
            if part.name in first.transposed:
                return solved.slice_of_whole(part)
            return solved.rows(part, buffers)

        return combine

    return method


class _Solved:
    def __init__(self, pool: Pool, moments: list[list[Moments]], shrink: float) -> None:
        self.pool = pool
        self.moments = moments
        self.shared = moments[0][0].shared
        self.shrink = shrink

    def rows(self, part: Slice, buffers: Buffers) -> Tensor:
        """Rows of W: each of them is solved by itself."""
        grams_KII, inverse_II = self._factors(self.shared[part.name])
        total_OI: Tensor = torch.zeros(())
        for number, gram_II in enumerate(grams_KII):
            rows_OI = member_chunk(self.pool, number, part, buffers).view(-1, len(gram_II))
            total_OI = total_OI + rows_OI.double() @ gram_II
        return (total_OI @ inverse_II).to(torch.float32).reshape(-1)

    def slice_of_whole(self, part: Slice) -> Tensor:
        """A slice of W^T, for a map kept as (inputs, outputs): each of its rows needs all of W."""
        return self._whole(part.name)[part.start : part.stop]

    @lru_cache(maxsize=2)  # noqa: B019 - the chunks of one tensor follow each other; lives as long as its merge
    def _whole(self, name: str) -> Tensor:
        spec = self.pool.specs[name]
        whole, buffers = Slice(name, 0, spec.size), Buffers(spec.size)
        grams_KII, inverse_II = self._factors(self.shared[name])
        models = [member_chunk(self.pool, number, whole, buffers) for number in range(len(grams_KII))]
        total_IO = torch.stack(
            [gram_II @ model_n.view(spec.shape).double() for gram_II, model_n in zip(grams_KII, models, strict=True)]
        ).sum(dim=0)
        return (inverse_II @ total_IO).to(torch.float32).reshape(-1)

    @lru_cache(maxsize=2)  # noqa: B019 - maps that share their inputs follow each other; lives as long as its merge
    def _factors(self, shared: str) -> tuple[list[Tensor], Tensor]:
        """Each model's shrunk moments, and the inverse of their sum."""
        grams_KII = [
            self._shrunk(torch.stack([one.matrix(shared) for one in group]).sum(dim=0)) for group in self.moments
        ]
        total_II = torch.stack(grams_KII).sum(dim=0)
        return grams_KII, torch.cholesky_inverse(torch.linalg.cholesky(total_II))

    def _shrunk(self, gram_II: Tensor) -> Tensor:
        gram_II = gram_II.double()
        diagonal_I = gram_II.diagonal()
        ridge = RIDGE * diagonal_I.mean().clamp(min=torch.finfo(torch.float32).tiny)
        return self.shrink * gram_II + torch.diag((1 - self.shrink) * diagonal_I + ridge)


def held_bytes(members: int, path: Path) -> int:
    """What a merge by RegMean holds at most besides its chunks: two maps' factors in float64."""
    sizes = (len(moments.matrix(name)) for moments in [read_moments(path)] for name in set(moments.shared.values()))
    return 2 * (members + 2) * max(sizes) ** 2 * 8


def _check_fit(pool: Pool, moments: Sequence[Moments], paths: Sequence[Path]) -> None:
    for path, found in zip(paths, moments, strict=True):
        for weight in found.shared.keys() | moments[0].shared.keys():
            if weight not in found.shared or weight not in moments[0].shared or weight not in pool.specs:
                raise BadInput(f"{path} does not fit the models: it differs in {weight}; make it again")
            if len(found[weight]) not in pool.specs[weight].shape:
                raise BadInput(f"{path} has {len(found[weight])} inputs for {weight}, which is {pool.specs[weight]}")
