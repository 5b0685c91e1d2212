"""How large hidden states are layer by layer, and how much of that one dimension holds: why one sigma fits no model.

    python benchmarks/massive_dimensions.py data/base_model data/product_reviews/validation.jsonl

A Markdown table: of the representations that RECALL compares (means over the tokens, and without the first token) the
root mean square norm, the share of the squared norm that the largest dimension holds, and the median distance between
two prompts, which is what `weighting.sigma: median` takes.

Shapes: L layers (0: embeddings), P prompts, E hidden size.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import pdist

from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.hidden_states import Pooling
from recall.learning_tasks import read_rows
from recall.loaded_models import loaded
from recall.representations import represent

COLUMNS = ("norm", "largest dimension", "median distance")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path, help="prepared rows")
    parser.add_argument("--prompts", type=int, default=20)
    given = parser.parse_args(arguments)
    poolings: tuple[Pooling, ...] = ("mean", "skip_first")
    try:
        prompts = [row.prompt for row in read_rows(given.rows)[: given.prompts]]
        with loaded(Checkpoint(given.model), torch.float32) as (model, tokenizer):
            found = [
                measured(represent(model, tokenizer, prompts, batch_size=16, max_tokens=512, pooling=pooling))
                for pooling in poolings
            ]
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    print("| layer |" + "".join(f" {name}, {pooling} |" for pooling in poolings for name in COLUMNS))
    print("|---" * (1 + len(poolings) * len(COLUMNS)) + "|")
    for layer, values in enumerate(zip(*found, strict=True)):
        cells = [f"{norm:.1f} | {share:.0%} | {distance:.1f}" for norm, share, distance in values]
        print(f"| {layer} | {' | '.join(cells)} |")
    return 0


def measured(hidden_LPE: np.ndarray) -> list[tuple[float, float, float]]:
    """Of each layer what `COLUMNS` names."""
    squares_LE = np.square(hidden_LPE).mean(axis=1)
    norms_L = np.sqrt(squares_LE.sum(axis=1))
    shares_L = squares_LE.max(axis=1) / squares_LE.sum(axis=1)
    distances_L = [float(np.median(pdist(hidden_PE))) for hidden_PE in hidden_LPE]
    return list(zip(norms_L.tolist(), shares_L.tolist(), distances_L, strict=True))


if __name__ == "__main__":
    sys.exit(main())
