"""Compare a merged model, bit for bit, with the float32 sum of its inputs in their order, cast once.

    python benchmarks/merge_reference.py OUT WEIGHTS MODEL [MODEL ...]

WEIGHTS is a recall.json; OUT may come from any program.
"""

import json
import sys
from pathlib import Path

import torch

from recall.tensor_files import TensorFolder
from recall.torch_types import TORCH_TYPES


def tensor(folder: TensorFolder, name: str) -> torch.Tensor:
    return torch.frombuffer(folder.read(name), dtype=TORCH_TYPES[folder.specs[name].dtype])


def differing(out: Path, weights: Path, models: list[Path]) -> list[str]:
    """The tensors in which the output is not the sum."""
    given = json.loads(weights.read_text())
    merged, inputs = TensorFolder(out), [TensorFolder(model) for model in models]
    if merged.specs != inputs[0].specs:
        return sorted(merged.specs.keys() ^ inputs[0].specs.keys()) or ["types or shapes"]
    found = []
    for name, layer in given["tensor_layers"].items():
        stored = [tensor(folder, name) for folder in inputs]
        total = torch.zeros(stored[0].shape)
        for model, weight in zip(stored, given["weights"][layer], strict=True):
            total.addcmul_(model.float(), torch.tensor(weight))
        ours = tensor(merged, name)
        if not torch.equal(ours.view(torch.int16), total.to(ours.dtype).view(torch.int16)):
            found.append(name)
    return found


if __name__ == "__main__":
    wrong = differing(Path(sys.argv[1]), Path(sys.argv[2]), [Path(model) for model in sys.argv[3:]])
    sys.exit(f"{sys.argv[1]} differs from the sum in {len(wrong)} tensors, the first {wrong[0]}" if wrong else 0)
