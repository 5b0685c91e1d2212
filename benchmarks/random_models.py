"""Random checkpoints of a Llama's shape, and LoRA adapters over them, written in seconds and without torch.

    python benchmarks/random_models.py write_model '["FOLDER", "tiny", 0]'

calls a function of this file with the words of a JSON list, in which a shape goes by its name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recall.tensor_files import CheckpointWriter, TensorSpec

SHARD_BYTES = 500_000_000


@dataclass(frozen=True)
class Shape:
    """Of a Llama whose head is not tied to its embedding."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 32_000


SHAPES = {
    "1.1B": Shape(2048, 5632, 22, 32, 4),  # TinyLlama's
    "0.2B": Shape(1024, 2816, 12, 16, 4),
    "small": Shape(256, 704, 4, 4, 2, 4_000),
    "tiny": Shape(16, 24, 3, 4, 2, 96),
}


def linear_shapes(shape: Shape) -> dict[str, tuple[int, int]]:
    """Rows and columns of the matrices of one block."""
    keys = shape.hidden // shape.heads * shape.kv_heads
    return {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for layer in range(shape.layers):
        for name, size in linear_shapes(shape).items():
            found[f"model.layers.{layer}.{name}.weight"] = size
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{name}.weight"] = (shape.hidden,)
    return found | {"model.norm.weight": (shape.hidden,), "lm_head.weight": (shape.vocabulary, shape.hidden)}


def tensor_layers(shape: Shape) -> dict[str, int]:
    """The layer whose weights each tensor takes: the embedding 0, block l - 1 layer l, norm and head the last."""
    blocks = {f"model.layers.{layer}.": layer + 1 for layer in range(shape.layers)}
    found = dict.fromkeys(tensor_shapes(shape), shape.layers)
    found["model.embed_tokens.weight"] = 0
    for prefix, layer in blocks.items():
        found |= {name: layer for name in found if name.startswith(prefix)}
    return found


def write_weights(path: Path, shape: Shape, count: int) -> None:
    """A recall.json for `count` models: random weights by layer."""
    random = np.random.default_rng(count)
    layers = ["embeddings", *(f"model.layers.{layer}" for layer in range(shape.layers))]
    weights = random.dirichlet([4.0] * count, len(layers)).tolist()
    path.write_text(json.dumps({"layers": layers, "weights": weights, "tensor_layers": tensor_layers(shape)}))


def write_model(folder: Path, shape: Shape, seed: int) -> None:
    """A bf16 checkpoint in shards of 500 MB."""
    specs = {name: TensorSpec("BF16", size) for name, size in tensor_shapes(shape).items()}
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    with CheckpointWriter(folder, specs, SHARD_BYTES) as writer:
        for name, spec in specs.items():
            writer.write(name, 0, memoryview(_random_bf16(random, spec.size)).cast("B"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def _random_bf16(random: np.random.Generator, count: int) -> np.ndarray:
    """Random sign, mantissa and exponent, from 2^-15 to 2 in size: every rounding occurs, and no zero."""
    bits = np.frombuffer(random.bytes(count * 2), np.uint16)
    return (bits & np.uint16(0x87FF)) | np.uint16(0x3800)


def write_adapter(folder: Path, base: Path, shape: Shape, seed: int, rank: int = 16) -> None:
    """A float32 LoRA adapter, as PEFT saves it, of every matrix of every block."""
    specs = {}
    for layer in range(shape.layers):
        for name, (rows, columns) in linear_shapes(shape).items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            specs[f"{module}.lora_A.weight"] = TensorSpec("F32", (rank, columns))
            specs[f"{module}.lora_B.weight"] = TensorSpec("F32", (rows, rank))
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    with CheckpointWriter(folder, specs) as writer:
        for name, spec in specs.items():
            content = (random.random(spec.size, np.float32) - 0.5) * 0.02
            writer.write(name, 0, memoryview(content).cast("B"))
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.rsplit(".", maxsplit=1)[-1] for name in linear_shapes(shape)],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main(arguments: list[str] | None = None) -> None:
    makers: dict[str, Callable[..., None]] = {
        "write_model": write_model,
        "write_adapter": write_adapter,
        "write_weights": write_weights,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("function", choices=makers)
    parser.add_argument("words", type=json.loads, help="a JSON list")
    given = parser.parse_args(arguments)
    words = (SHAPES[word] if word in SHAPES else Path(word) if isinstance(word, str) else word for word in given.words)
    makers[given.function](*words)


if __name__ == "__main__":
    main()
