"""Representations of every layer against the bare forward pass over the same batches: throughput and peak memory.

    python benchmarks/representation_speed.py [--runs 5] [--prompts 64] [--threads 2]

A random float32 Llama of SmolLM2-135M's shape. Times are of one process, in turns; shown are medians. Peak memory is
what the operating system counts for a process that does nothing else, one for each way.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

BATCH, LONGEST = 16, 96


def words_as_numbers(prompt: str) -> Any:
    """In place of a tokenizer: a prompt is its tokens' numbers."""
    return SimpleNamespace(input_ids=[int(word) for word in prompt.split()])


words_as_numbers.pad_token_id = 0  # type: ignore[attr-defined]


def prompts_of(count: int) -> list[str]:
    """Random prompts of 16 to 96 tokens."""
    chosen = random.Random(0)
    return [" ".join(str(chosen.randrange(49_152)) for _ in range(chosen.randint(16, LONGEST))) for _ in range(count)]


def ways(prompts: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Both ways over one and the same model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from recall.representations import represent

    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval()

    def bare() -> None:
        rows = sorted((words_as_numbers(prompt).input_ids for prompt in prompts), key=len)
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            width = max(map(len, batch))
            ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in batch])
            mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
            with torch.inference_mode():
                model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)

    def ours() -> None:
        represent(model, words_as_numbers, prompts, batch_size=BATCH, max_tokens=LONGEST)  # type: ignore[arg-type]

    return {"bare forward pass": bare, "represent": ours}


def times(runs: int, prompts: list[str]) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each way."""
    found: dict[str, list[tuple[float, float]]] = {}
    both = ways(prompts)
    for turn in range(runs + 1):
        for name, way in both.items():
            wall, cpu = time.monotonic(), time.process_time()
            way()
            if turn:  # the first warms up
                found.setdefault(name, []).append((time.monotonic() - wall, time.process_time() - cpu))
    return {name: (median(w for w, _ in seen), median(c for _, c in seen)) for name, seen in found.items()}


def peak_mb(name: str, arguments: list[str]) -> float:
    """Peak memory of a process that goes one way alone."""
    done = subprocess.run(
        [sys.executable, Path(__file__), *arguments, "--way", name], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1]) / 1e3


def main() -> None:
    """Both ways in turns, then each alone for its memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    prompts = prompts_of(given.prompts)
    if given.way:
        ways(prompts)[given.way]()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    tokens = sum(len(prompt.split()) for prompt in prompts)
    measured = times(given.runs, prompts)
    print(f"{given.prompts} prompts, {tokens} tokens, {given.threads} threads; medians of {given.runs} runs\n")
    print("| | wall s | CPU s | tokens / s | peak MB |\n|---|---|---|---|---|")
    arguments = [f"--prompts={given.prompts}", f"--threads={given.threads}"]
    peaks = {name: peak_mb(name, arguments) for name in measured}
    for name, (wall, cpu) in measured.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {tokens / wall:.0f} | {peaks[name]:.0f} |")
    bare, ours = measured
    of_wall, of_cpu = (measured[bare][kind] / measured[ours][kind] for kind in (0, 1))
    print(f"| ratio | {of_wall:.2f} | {of_cpu:.2f} | {of_wall:.2f} | {peaks[ours] / peaks[bare]:.2f} |")


if __name__ == "__main__":
    main()
