"""What a merge on a device costs in copies alone: every input to the device, one output back. See merge_speed.py.

    python benchmarks/device_copy.py DEVICE MODEL [MODEL ...]

As many bytes as the models' files have, from pinned memory in chunks of the merge's size; nothing is read from disk.
"""

import argparse
from pathlib import Path

import torch

from recall.chunks import DEVICE_CHUNK

ITEM_BYTES = 2


def copy(device: torch.device, models: list[Path]) -> None:
    """Copies in one direction wait for each other, and those in the other direction run beside them."""
    size = DEVICE_CHUNK * ITEM_BYTES
    pinned = device.type == "cuda"
    host, back = (torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(2))
    there = torch.empty(size, dtype=torch.uint8, device=device)
    sizes = [sum(file.stat().st_size for file in model.glob("*.safetensors")) for model in models]
    returning = torch.cuda.Stream(device) if pinned else None
    for _ in range(sum(sizes) // size):
        there.copy_(host, non_blocking=True)
    with torch.cuda.stream(returning):
        for _ in range(sizes[0] // size):
            back.copy_(there, non_blocking=True)
    if pinned:
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", type=torch.device)
    parser.add_argument("models", type=Path, nargs="+")
    given = parser.parse_args()
    copy(given.device, given.models)
