"""RegMean: the linear map that is nearest to all experts' on their own inputs, in closed form (Jin et al. 2023).

Shapes: K models, O outputs and I inputs of a map, n elements of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from recall.buffers import Buffers
from recall.chunks import Lanes, Slice
from recall.errors import BadInput
from recall.merging import Combine, Method
from recall.moments import Moments, read_moments
from recall.pool import Pool
from recall.recent import Recent
from recall.task_vectors import member_chunk

# Of the mean of a matrix's diagonal: inputs that no sample uses get the plain average.
RIDGE = 1e-6


def regmean(paths: Sequence[Sequence[Path]], shrink: float = 0.9) -> Method:
    """W = (sum_k W_k G_k) (sum_k G_k)^-1 for every linear map, the plain average for everything else.

    Equation 2 of the paper, with W as (outputs, inputs); G_k are the second moments of expert k's inputs, their
    off-diagonal elements times `shrink` (its section 3.2). Solved in float64, row by row of W, so that the merge is
    streamed as any other; what is held besides is a few (I, I) matrices a model (see `held_bytes`).

    Args:
        paths: the files of moments of each model, in the pool's order (see `recall.moments`): an expert's own, or
            those of all the experts that a merged model stands for.

    Raises:
        BadInput: a file is missing, or does not fit the model.
    """

    def method(pool: Pool, _: Lanes) -> Combine:
        moments = [[read_moments(path) for path in files] for files in paths]
        for files, group in zip(paths, moments, strict=True):
            for path, found in zip(files, group, strict=True):
                _check_fit(pool, path, found, moments[0][0])
        first = moments[0][0]
        solved = _Solved(pool, moments, shrink)

        def combine(part: Slice, buffers: Buffers) -> Tensor:
            if part.name not in first.shared:
                chunks = [member_chunk(pool, number, part, buffers) for number in range(len(pool.members))]
                return torch.stack(chunks).mean(dim=0)
            if part.name in first.transposed:
                return solved.whole(part.name)[part.start : part.stop]
            return solved.rows(part, buffers)

        return combine

    return method


def held_bytes(models: int, path: Path) -> int:
    """What a merge by RegMean holds at most besides its chunks.

    In float64 the matrices of one map while they are made, and the last map's; of maps that are kept as (inputs,
    outputs) also every model's whole.
    """
    moments = read_moments(path)
    widest = max(moments.inputs.values())
    # Conv1D's widest output is four times its input.
    whole = (models + 3) * 4 * widest**2 * 8 if moments.transposed else 0
    return (3 * models + 5) * widest**2 * 8 + whole


class _Solved:
    def __init__(self, pool: Pool, moments: list[list[Moments]], shrink: float) -> None:
        self.pool = pool
        self.moments = moments
        self.shared = moments[0][0].shared
        self.shrink = shrink
        # The chunks of one tensor follow each other, and so do maps that share their inputs.
        self.factors = Recent(1, self._factors)
        # A map kept as (inputs, outputs): each of its rows needs all of W.
        self.whole = Recent(1, self._whole)

    def rows(self, part: Slice, buffers: Buffers) -> Tensor:
        """Rows of W: each of them is solved by itself."""
        grams_KII, inverse_II = self.factors(self.shared[part.name])
        total_OI: Tensor = torch.zeros(())
        for number, gram_II in enumerate(grams_KII):
            rows_OI = member_chunk(self.pool, number, part, buffers).view(-1, len(gram_II))
            total_OI = total_OI + rows_OI.double() @ gram_II
        return (total_OI @ inverse_II).to(torch.float32).reshape(-1)

    def _whole(self, name: str) -> Tensor:
        spec = self.pool.specs[name]
        everything, buffers = Slice(name, 0, spec.size), Buffers(spec.size)
        grams_KII, inverse_II = self.factors(self.shared[name])
        total_IO: Tensor = torch.zeros(())
        for number, gram_II in enumerate(grams_KII):
            model_IO = member_chunk(self.pool, number, everything, buffers).view(spec.shape)
            total_IO = total_IO + gram_II @ model_IO.double()
        return (inverse_II @ total_IO).to(torch.float32).reshape(-1)

    def _factors(self, shared: str) -> tuple[list[Tensor], Tensor]:
        """Each model's shrunk moments, and the inverse of their sum."""
        grams_KII = [self._shrunk(shared, group) for group in self.moments]
        total_II = torch.stack(grams_KII).sum(dim=0)
        return grams_KII, torch.cholesky_inverse(torch.linalg.cholesky(total_II))

    def _shrunk(self, shared: str, group: list[Moments]) -> Tensor:
        gram_II = torch.stack([one.matrix(shared) for one in group]).double().sum(dim=0)
        diagonal_I = gram_II.diagonal()
        ridge = RIDGE * diagonal_I.mean().clamp(min=torch.finfo(torch.float32).tiny)
        return self.shrink * gram_II + torch.diag((1 - self.shrink) * diagonal_I + ridge)


def _check_fit(pool: Pool, path: Path, found: Moments, first: Moments) -> None:
    for weight in sorted(found.shared.keys() | first.shared.keys()):
        if weight not in found.shared or weight not in first.shared or weight not in pool.specs:
            raise BadInput(f"{path} does not fit the models: it differs in {weight}; make it again")
        shape, inputs = pool.specs[weight].shape, found.inputs[found.shared[weight]]
        if shape[0 if weight in first.transposed else 1] != inputs:
            raise BadInput(f"{path} has {inputs} inputs for {weight}, which is {shape[0]} x {shape[1]}; make it again")
