"""Torch's types by the words that safetensors headers use for them."""

import torch

TORCH_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
