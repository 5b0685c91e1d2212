"""The hierarchical merge: every parameter of layer l becomes a weighted sum (RECALL, section 3.3; DESIGN 2, step 6).

Shape suffixes: L layers, K models (the newest last).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.layers import Layers, find_layers
from recall.progress import track
from recall.tensor_files import DTYPES, TensorFolder, TensorSpec, write_checkpoint

SIDE_FILES = ("config.json", "generation_config.json", "chat_template.jinja", "special_tokens_map.json")
LORA_PREFIX = "base_model.model."


def merge(pool: Sequence[Checkpoint], weights_LK: np.ndarray, out: Path) -> None:
    """Write the layer-wise weighted sum of `pool` to `out` as a Hugging Face folder.

    Tensors are read by memory map and written one at a time: never a whole model in memory. With several models of
    one base the base is read once: theta_0 + sum_k w_l^k (alpha/r) B_k A_k. Sums run in float32 as differences from
    the first base, so models that agree give their parameters back bit for bit; the result is cast once, to the first
    base's type.

    Args:
        pool: K full checkpoints or LoRA adapters, the newest last.
        weights_LK: `(L, K)`, rows sum to 1, the embeddings first.

    Raises:
        BadInput: the models differ in structure, a tensor belongs to no layer, or one is not finite.
        Failed: `out` cannot be written.
    """
    layers = checkpoint_layers(pool[0])
    assert weights_LK.shape == (layers.count + 1, len(pool)), "one row a layer, one column a model"
    folders = [member.base.folder if member.base else member.folder for member in pool]
    bases = {folder: TensorFolder(folder) for folder in dict.fromkeys(folders)}
    adapters = [LoraAdapter(member.folder) if member.base else None for member in pool]
    first, *others = bases.values()
    for other in others:
        _check_same_tensors(first, other)
    for adapter in adapters:
        if adapter:
            adapter.check_targets(first)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in track(first.specs, "merge", total=len(first.specs)):
            weights_K = weights_LK[layers.of(name)].tolist()
            yield name, _merged_tensor(name, weights_K, folders, bases, adapters)

    out.mkdir(parents=True, exist_ok=True)
    write_checkpoint(out, first.specs, tensors())
    for file in first.folder.iterdir():
        if file.name in SIDE_FILES or file.name.startswith(("tokenizer", "vocab", "merges", "added_tokens")):
            shutil.copyfile(file, out / file.name)


def checkpoint_layers(checkpoint: Checkpoint) -> Layers:
    """The layers of a checkpoint, found from its structure alone; no weight is read."""
    folder = (checkpoint.base or checkpoint).folder
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    layers = find_layers(model)
    known = set(model.state_dict())
    for name in TensorFolder(folder).specs:
        if name not in known and not name.startswith(f"{layers.prefix}."):
            raise BadInput(
                f"{folder}: tensor {name} belongs to no layer of {type(model).__name__}, so it cannot be merged"
            )
    return layers


class LoraAdapter:
    """A PEFT LoRA adapter on disk, as one low-rank difference a target tensor.

    Raises:
        BadInput: the adapter has parts that are no low-rank difference (DoRA, biases, whole modules).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        self.tensors = TensorFolder(folder)
        unusual = [
            key
            for key in ("use_dora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern")
            if self.config.get(key)
        ]
        if self.config.get("peft_type") != "LORA" or unusual:
            found = unusual[0] if unusual else f"peft_type {self.config.get('peft_type')}"
            raise BadInput(f"adapter {folder} uses {found}; only plain LoRA differences can be merged layer by layer")
        rank = self.config["r"]
        self.scaling = self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        self.targets = {
            name.removeprefix(LORA_PREFIX).removesuffix(".lora_A.weight")
            for name in self.tensors.specs
            if name.endswith(".lora_A.weight")
        }

    def check_targets(self, base: TensorFolder) -> None:
        """Refuse an adapter that changes tensors which the base does not have, or in another shape."""
        for target in sorted(self.targets):
            spec = base.specs.get(f"{target}.weight")
            if spec is None:
                raise BadInput(
                    f"adapter {self.folder} changes {target}, which {base.folder} does not have; it fits another base"
                )
            rows = self.tensors.specs[f"{LORA_PREFIX}{target}.lora_B.weight"].shape[0]
            columns = self.tensors.specs[f"{LORA_PREFIX}{target}.lora_A.weight"].shape[1]
            if sorted((rows, columns)) != sorted(spec.shape):
                raise BadInput(
                    f"adapter {self.folder} changes {target} as {rows} x {columns}, but it is "
                    f"{' x '.join(map(str, spec.shape))} in {base.folder}; it fits another base"
                )

    def difference(self, name: str) -> Tensor | None:
        """(alpha/r) B A in float32 for the tensor `name`, or None where the adapter leaves it as it is."""
        target = name.removesuffix(".weight")
        if target not in self.targets or target == name:
            return None
        low_A = self.tensors.read(f"{LORA_PREFIX}{target}.lora_A.weight").float()
        low_B = self.tensors.read(f"{LORA_PREFIX}{target}.lora_B.weight").float()
        product = (low_B @ low_A).mul_(self.scaling)
        return product.T if self.config.get("fan_in_fan_out") else product


def _merged_tensor(
    name: str,
    weights_K: list[float],
    folders: list[Path],
    bases: dict[Path, TensorFolder],
    adapters: list[LoraAdapter | None],
) -> Tensor:
    first_folder, *other_folders = bases
    reference = bases[first_folder].read(name)
    differences: list[tuple[float, Tensor]] = []
    for folder in other_folders:
        share = sum(weight for weight, of in zip(weights_K, folders, strict=True) if of == folder)
        if share:
            differences.append((share, bases[folder].read(name).float() - reference.float()))
    for weight, adapter in zip(weights_K, adapters, strict=True):
        difference = adapter.difference(name) if adapter and weight else None
        if difference is not None:
            differences.append((weight, difference))
    if not differences:
        return reference
    total = reference.float()
    for weight, difference in differences:
        total = total.add(difference, alpha=weight)
    if not torch.isfinite(total).all():
        raise BadInput(f"tensor {name} of the merge holds NaN or Inf; check the models that were given")
    return total.to(DTYPES[bases[first_folder].specs[name].dtype])


def _check_same_tensors(first: TensorFolder, other: TensorFolder) -> None:
    for name in sorted(first.specs.keys() | other.specs.keys()):
        specs = first.specs.get(name), other.specs.get(name)
        if specs[0] is None or specs[1] is None:
            where = other.folder if specs[1] is None else first.folder
            raise BadInput(f"tensor {name} is missing in {where}; only models of one architecture can be merged")
        if specs[0].shape != specs[1].shape:
            raise BadInput(
                f"tensor {name} is {_shape(specs[0])} in {first.folder} and {_shape(specs[1])} in {other.folder}; "
                "only models of one architecture can be merged"
            )


def _shape(spec: TensorSpec) -> str:
    return " x ".join(map(str, spec.shape))
