"""GFLOP/s of the product that a merge of 16 adapters of rank 16 spends its time on, on 1 thread and on all cores.

    python benchmarks/matrix_speed.py

128 x 256 by 256 x 2048 in float32, a chunk of a matrix of TinyLlama's; every thread has operands of its own.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import torch

ROWS, RANK, COLUMNS, TIMES, RUNS = 128, 256, 2048, 100, 5


def products(_: int) -> None:
    """As in_threads of recall/merging.py: torch's own threads stay off."""
    torch.set_num_threads(1)
    left_OR, right_RI, total_OI = torch.randn(ROWS, RANK), torch.randn(RANK, COLUMNS), torch.zeros(ROWS, COLUMNS)
    for _ in range(TIMES):
        total_OI.addmm_(left_OR, right_RI)


def speed(threads: int) -> float:
    """GFLOP/s of all threads together; the median of some runs."""
    seconds = []
    for _ in range(RUNS):
        started = time.monotonic()
        with ThreadPoolExecutor(threads) as executor:
            list(executor.map(products, range(threads)))
        seconds.append(time.monotonic() - started)
    return threads * TIMES * 2 * ROWS * RANK * COLUMNS / median(seconds) / 1e9


if __name__ == "__main__":
    for count in sorted({1, len(os.sched_getaffinity(0))}):
        print(f"{count} thread{'s' * (count > 1)}: {speed(count):.0f} GFLOP/s")
