"""A vision transformer takes in scikit-learn's digits: upright, then turned by 90 degrees, then inverted.

    python examples/rotated_digits.py [--quick] [--json] [--seed N]

Real scans of handwritten digits (8 x 8, 1,797 of them). The model is a small one made on the spot: random
weights, then a short training on 600 digits, each turned by up to 90 degrees either way and half of them
inverted, so that there is a common start to merge from. The labels are the same in all three learning tasks;
how the picture looks is not. No digit is in two learning tasks, nor in training and test.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from plain_stream import Batch, LearningTask, classify, fit, main, save_inputs
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from recall.results import StreamResult

BASE, TRAIN, TEST = 600, 240, 150
SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
}


def run(work: Path, quick: bool, seed: int) -> tuple[StreamResult, dict[str, int]]:
    """The base model, then the stream."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images, labels = digits.images[order] / 16, digits.target[order]
    draw = np.random.default_rng(seed)
    turned = [rotate(image, draw.uniform(-90, 90), reshape=False, order=1) for image in images[:BASE]]
    mixed = [image if draw.random() < 1 / 2 else 1 - image for image in turned]
    start = model(seed)
    fit(start, batch(np.stack(mixed), labels[:BASE]), steps=150 if quick else 400, rate=2e-3, seed=seed)
    start.save_pretrained(work / "base")
    changes = {
        "upright": lambda image: image,
        "turned": lambda image: np.rot90(image, axes=(1, 2)).copy(),
        "inverted": lambda image: 1 - image,
    }
    tasks = {}
    for number, (name, change) in enumerate(changes.items()):
        first = BASE + number * (TRAIN + TEST)
        parts = [slice(first, first + TRAIN), slice(first + TRAIN, first + TRAIN + TEST)]
        train, test = (batch(change(images[part]), labels[part]) for part in parts)
        tasks[name] = LearningTask(train, test, save_inputs(train, work / f"{name}.safetensors"))
    result = classify("digits", work / "base", tasks, steps=30 if quick else 60, rate=1e-3, seed=seed)
    return result, {name: len(task.test.labels) for name, task in tasks.items()}


def model(seed: int) -> ViTForImageClassification:
    """16 patches of 2 x 2 pixels, 4 blocks."""
    torch.manual_seed(seed)
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **SHAPE))


def batch(images: np.ndarray, labels: np.ndarray) -> Batch:
    """Pixels from 0 to 1 as the model reads them, `(rows, 1, 8, 8)`."""
    pixels = torch.tensor(images, dtype=torch.float32)[:, None]
    return Batch({"pixel_values": 2 * pixels - 1}, torch.tensor(labels, dtype=torch.long))


if __name__ == "__main__":
    main(__doc__, run)
