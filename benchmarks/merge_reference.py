"""Compare a merged model with the sum of its inputs in their order, rounded once.

    python benchmarks/merge_reference.py OUT WEIGHTS MODEL [MODEL ...]

WEIGHTS is a recall.json; OUT may come from any program. Of full models it must be the float32 sum bit for bit. Of LoRA
adapters over a base every element must be what the sum rounds to, give or take the error of float32: the last bit of a
float32 product depends on its chunks.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from recall.checkpoints import read_json
from recall.errors import BadInput
from recall.tensor_files import TensorFolder
from recall.torch_types import TORCH_TYPES


def tensor(folder: TensorFolder, name: str) -> Tensor:
    spec = folder.specs[name]
    return torch.frombuffer(folder.read(name), dtype=TORCH_TYPES[spec.dtype]).view(spec.shape)


def differing(out: Path, weights: Path, models: list[Path]) -> list[str]:
    """The tensors in which the output is not the sum."""
    given = read_json(weights)
    merged, inputs = TensorFolder(out), [TensorFolder(model) for model in models]
    if merged.specs != inputs[0].specs:
        return sorted(merged.specs.keys() ^ inputs[0].specs.keys()) or ["types or shapes"]
    agrees = is_sum_of_adapters if (models[-1] / "adapter_config.json").exists() else is_sum
    return [
        name
        for name, layer in given["tensor_layers"].items()
        if not agrees(tensor(merged, name), name, inputs, given["weights"][layer])
    ]


def is_sum(merged: Tensor, name: str, inputs: list[TensorFolder], weights_K: list[float]) -> bool:
    """Of full models, in float32."""
    total = torch.zeros(merged.shape)
    for folder, weight in zip(inputs, weights_K, strict=True):
        total.addcmul_(tensor(folder, name).float(), torch.tensor(weight))
    return torch.equal(merged.view(torch.int16), total.to(merged.dtype).view(torch.int16))


def is_sum_of_adapters(merged_OI: Tensor, name: str, inputs: list[TensorFolder], weights_K: list[float]) -> bool:
    """Of a base and what adapters add to it, in float64; weights sum to 1, so the base counts once."""
    base, *adapters = inputs
    low_A, low_B = (f"base_model.model.{name.removesuffix('.weight')}.lora_{factor}.weight" for factor in "AB")
    changing = [pair for pair in zip(adapters, weights_K[1:], strict=True) if low_A in pair[0].specs]
    if not changing:
        return is_sum(merged_OI, name, [base], [1.0])
    base_OI = tensor(base, name).double()
    total_OI, ranks, largest = base_OI.clone(), 0, 0.0
    for adapter, weight in changing:
        config = read_json(adapter.folder / "adapter_config.json")
        left_Or = weight * config["lora_alpha"] / config["r"] * tensor(adapter, low_B).double()
        right_rI = tensor(adapter, low_A).double()
        total_OI.addmm_(left_Or, right_rI)
        ranks += len(right_rI)
        largest += len(right_rI) * float(left_Or.abs().max() * right_rI.abs().max())
    # The bound of a float32 sum of `ranks` products and the base, whose factors were scaled in float32 too.
    error_OI = (ranks + 3) * 2**-24 * (base_OI.abs() + largest)
    low_OI, high_OI = ((total_OI + sign * error_OI).to(merged_OI.dtype) for sign in (-1, 1))
    return bool(((low_OI <= merged_OI) & (merged_OI <= high_OI)).all())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    given = parser.parse_args(arguments)
    try:
        wrong = differing(given.out, given.weights, given.models)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    if wrong:
        print(f"{given.out} differs from the sum in {len(wrong)} tensors, the first {wrong[0]}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
