"""The linear map that is nearest to all experts' on their own inputs, in closed form: RegMean, and weighted by RECALL.

Shapes: R rows of the weight matrix, K models, O outputs and I inputs of a map, n elements of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recall.buffers import Buffers
from recall.chunks import Lanes, Slice
from recall.errors import BadInput
from recall.merging import Combine, Method, WeightedSum
from recall.moments import Moments, read_moments
from recall.pool import Pool
from recall.recent import Recent
from recall.task_vectors import member_chunk

# Of the mean of a matrix's diagonal: inputs that no sample uses get the plain average.
RIDGE = 1e-6


def regmean(
    paths: Sequence[Sequence[Path]],
    shrink: float = 0.9,
    weights_RK: np.ndarray | None = None,
    row_of: Callable[[str], int] | None = None,
) -> Method:
    """W = (sum_k w_k W_k G_k) (sum_k w_k G_k)^-1 for every linear map, the weighted sum for everything else.

    Without weights, all w_k alike, this is RegMean (Jin et al. 2023), equation 2, with W as (outputs, inputs); G_k are
    the second moments of expert k's inputs, their off-diagonal elements times `shrink` (its section 3.2). Solved in
    float64, row by row of W, so that the merge is streamed as any other; what is held besides is a few (I, I) matrices
    a model (see `held_bytes`).

    With RECALL's weights it is the method `recall_moments`, our own: the W that minimises
    sum_k w_k E_k ||W x - W_k x||^2 over the inputs x of model k's own typical samples. The paper's merge is the case in
    which all models' inputs have the same second moments. How alike the layers are says how much of a model to keep,
    its moments say in which directions: what the newest model changed stays where only its inputs go, and is held back
    where the older models' go.

    Args:
        paths: the files of moments of each model, in the pool's order (see `recall.moments`): an expert's own, or
            those of all the experts that a merged model stands for.
        weights_RK, row_of: as for `recall.merging.merge`.

    Raises:
        BadInput: a file is missing, or does not fit the model; the moments' sum cannot be inverted.
    """

    def method(pool: Pool, _: Lanes) -> Combine:
        moments = [[read_moments(path) for path in files] for files in paths]
        for files, group in zip(paths, moments, strict=True):
            for path, found in zip(files, group, strict=True):
                check_fit(pool, path, found, moments[0][0])
        first = moments[0][0]
        shares_RK = np.full((1, len(pool.members)), 1 / len(pool.members)) if weights_RK is None else weights_RK
        row = row_of if row_of and weights_RK is not None else (lambda _: 0)
        # RegMean counts every expert alike, so a model that stands for several counts as often.
        counts_K = [len(group) if weights_RK is None else 1 for group in moments]
        solved = _Solved(pool, moments, shrink, shares_RK * counts_K, row)
        summed = WeightedSum(pool, shares_RK, row)

        def combine(part: Slice, buffers: Buffers) -> Tensor:
            if part.name not in first.shared:
                return summed(part, buffers)
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
    def __init__(
        self,
        pool: Pool,
        moments: list[list[Moments]],
        shrink: float,
        weights_RK: np.ndarray,
        row_of: Callable[[str], int],
    ) -> None:
        self.pool = pool
        self.weights_RK, self.row_of = weights_RK, row_of
        self.moments = moments
        self.shared = moments[0][0].shared
        self.shrink = shrink
        # The chunks of one tensor follow each other, and most maps that share their inputs do.
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
        return (total_OI @ inverse_II).to(self._summed_in(part.name)).reshape(-1)

    def _whole(self, name: str) -> Tensor:
        spec = self.pool.specs[name]
        everything, buffers = Slice(name, 0, spec.size), Buffers(spec.size)
        grams_KII, inverse_II = self.factors(self.shared[name])
        total_IO: Tensor = torch.zeros(())
        for number, gram_II in enumerate(grams_KII):
            model_IO = member_chunk(self.pool, number, everything, buffers).view(spec.shape)
            total_IO = total_IO + gram_II @ model_IO.double()
        return (inverse_II @ total_IO).to(self._summed_in(name)).reshape(-1)

    def _summed_in(self, name: str) -> torch.dtype:
        """As weighted sums are: float64 for a float64 tensor, else float32."""
        return torch.float64 if self.pool.specs[name].dtype == "F64" else torch.float32

    def _factors(self, shared: str) -> tuple[list[Tensor], Tensor]:
        """Each model's shrunk moments times its weight, and the inverse of their sum."""
        weights_K = self.weights_RK[self.row_of(shared)].tolist()
        grams_KII = [
            weight * self._shrunk(shared, group) for weight, group in zip(weights_K, self.moments, strict=True)
        ]
        total_II = torch.stack(grams_KII).sum(dim=0)
        if not total_II.isfinite().all():
            raise BadInput(f"the moments for {shared} hold NaN or Inf; make them again with `recall moments`")
        factor_II, failed = torch.linalg.cholesky_ex(total_II)
        if failed:
            raise BadInput(
                f"the moments for {shared} are of too few directions to be inverted; lower shrink, or give more samples"
            )
        return grams_KII, torch.cholesky_inverse(factor_II)

    def _shrunk(self, shared: str, group: list[Moments]) -> Tensor:
        gram_II = torch.stack([one.matrix(shared) for one in group]).double().mean(dim=0)
        diagonal_I = gram_II.diagonal()
        ridge = RIDGE * diagonal_I.mean().clamp(min=torch.finfo(torch.float32).tiny)
        return self.shrink * gram_II + torch.diag((1 - self.shrink) * diagonal_I + ridge)


def check_fit(pool: Pool, path: Path, found: Moments, first: Moments) -> None:
    """Check one model's moments against the models and the `first` one's moments, from the file's header alone.

    Raises:
        BadInput: they are weighted otherwise, are of other maps, share their inputs otherwise, or have other sizes.
    """
    if found.weighting != first.weighting:
        raise BadInput(
            f"{path} has moments weighted {found.weighting} and the first model's are weighted {first.weighting}, "
            "which are not of one scale; make them again alike with `recall moments --weighting`"
        )
    for weight in sorted(found.shared.keys() | first.shared.keys()):
        if found.shared.get(weight) != first.shared.get(weight) or weight not in pool.specs:
            raise BadInput(f"{path} does not fit the models: it differs in {weight}; make it again")
        shape, inputs = pool.specs[weight].shape, found.inputs[found.shared[weight]]
        if shape[0 if weight in first.transposed else 1] != inputs:
            raise BadInput(f"{path} has {inputs} inputs for {weight}, which is {shape[0]} x {shape[1]}; make it again")
