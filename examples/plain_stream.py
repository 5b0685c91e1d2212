"""What the examples share: a stream taken in by three methods, a plain training loop, and the table at the end.

Clustering, representations, weights, merges and metrics are those of `recall/`; nothing of the method is here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from flows.one_sentence import errors_in_one_sentence
from recall import progress
from recall.checkpoints import Checkpoint, copy_side_files
from recall.continual_metrics import backward_transfer
from recall.loaded_models import loaded_model
from recall.loading import load_model
from recall.merge_job import merge_models
from recall.merge_request import merge_request
from recall.results import MergeWeights, ScoreMatrix, StreamResult, UpdateResult
from recall.standings import headings, points, summary_rows
from recall.summary import to_json, verdict

METHODS = ("sequential", "average", "recall")
CLUSTERS, BATCH = 20, 32
Train = Callable[[str, Path, Path], None]
Score = Callable[[str, Path], float]


@dataclass(frozen=True)
class Batch:
    """Rows that a classifier reads, with the first dimension the row, and their labels."""

    inputs: dict[str, Tensor]
    labels: Tensor

    def rows(self, chosen: Tensor) -> Batch:
        """Some of the rows."""
        return Batch({name: tensor[chosen] for name, tensor in self.inputs.items()}, self.labels[chosen])


@dataclass(frozen=True)
class LearningTask:
    """A classification of a stream; the merge sees `samples`, a file with the training inputs and without labels."""

    train: Batch
    test: Batch
    samples: Path


def take_in(
    stream: str, base: Path, samples: Mapping[str, Path], metric: str, train: Train, score: Score
) -> StreamResult:
    """Take in the learning tasks by every method, each fine-tuning from its own current model.

    Args:
        base: the model to begin with; all other models are written beside it.
        samples: for each learning task, in stream order, what typical samples are taken from (see docs/merge.md).
        train: gets a learning task, the folder to start from and the folder to write the expert to.
        score: of a learning task and a model's folder, in [0, 1].
    """
    names = list(samples)
    first = base.parent / f"{names[0]}-expert"
    train(names[0], base, first)
    base_scores = [score(name, base) for name in names]
    methods: dict[str, ScoreMatrix] = {}
    updates: list[UpdateResult] = []
    for method in METHODS:
        current, scores = base, [base_scores]
        for number, name in enumerate(names):
            expert = base.parent / f"{method}-{name}-expert" if number else first
            if number:
                train(name, current, expert)
            if method == "sequential":
                current = expert
            else:
                merged = base.parent / f"{method}-{name}"
                fields = {"models": [str(current), str(expert)], "samples": samples[name], "clusters": CLUSTERS}
                record = merge_models(merge_request(method=method, out=merged, **fields))
                current = merged
            if method == "recall":
                weights = MergeWeights(**record.model_dump(include=set(MergeWeights.model_fields)))
                updates.append(UpdateResult(learning_task=name, expert_score=score(name, expert), merge=weights))
            scores.append([score(other, current) for other in names])
        methods[method] = ScoreMatrix(learning_tasks=names, unseen=[], scores=scores)
    metrics = dict.fromkeys(names, metric)
    return StreamResult(stream=stream, metrics=metrics, methods=methods, updates=updates, settings={})


def classify(
    stream: str, base: Path, tasks: Mapping[str, LearningTask], steps: int, rate: float, seed: int
) -> StreamResult:
    """`take_in` for classifiers: every weight is fine-tuned, the score is accuracy."""

    def train(name: str, start: Path, out: Path) -> None:
        model = load_model(start, torch.float32)
        fit(model, tasks[name].train, steps, rate, seed)
        model.save_pretrained(out)
        copy_side_files(start, out)

    def score(name: str, folder: Path) -> float:
        with loaded_model(Checkpoint(folder), torch.float32) as model:
            return accuracy(cast(PreTrainedModel, model), tasks[name].test)

    return take_in(stream, base, {name: task.samples for name, task in tasks.items()}, "accuracy", train, score)


def fit(model: PreTrainedModel, data: Batch, steps: int, rate: float, seed: int) -> None:
    """AdamW with a warm-up and a linear decay, on random batches and the loss that the model itself computes."""
    torch.manual_seed(seed)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = get_linear_schedule_with_warmup(optimiser, steps // 10, steps)
    for _ in range(steps):
        batch = data.rows(torch.randperm(len(data.labels))[:BATCH])
        model(**batch.inputs, labels=batch.labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()


@torch.inference_mode()
def accuracy(model: PreTrainedModel, data: Batch) -> float:
    """The share of rows whose label has the largest logit."""
    model.eval()
    found = [
        model(**data.rows(chosen).inputs).logits.argmax(-1) for chosen in torch.arange(len(data.labels)).split(256)
    ]
    return float((torch.cat(found) == data.labels).float().mean())


def save_inputs(data: Batch, file: Path) -> Path:
    """Inputs without labels, as `recall merge --samples FILE.safetensors` reads them."""
    save_file({name: tensor.contiguous() for name, tensor in data.inputs.items()}, file)
    return file


def main(about: str, run: Callable[[Path, bool, int], tuple[StreamResult, dict[str, int]]]) -> None:
    """Read the options, run the example in a folder of its own, and show what came out.

    Args:
        about: the module's docstring.
        run: gets the folder, whether to be quick, and the seed; gives the result and the learning tasks' test rows.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller run, which shows that it works and no more")
    parser.add_argument("--json", action="store_true", help="print JSON to standard output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args()
    # Tiny matrices gain nothing from threads, and sums depend on their number.
    torch.set_num_threads(1)
    started = time.monotonic()
    with errors_in_one_sentence(options.debug), tempfile.TemporaryDirectory() as work, _quiet():
        result, test_rows = run(Path(work), options.quick, options.seed)
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps(to_json(result, test_rows=test_rows) | {"seconds": seconds}, indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(_table(result))
    console.print(verdict(result, test_rows), markup=False, highlight=False)
    console.print(f"{seconds:.0f} s", highlight=False)


class _quiet:  # noqa: N801 - reads as a statement
    """No line for each of the many stages, most of which take a tenth of a second."""

    def __enter__(self) -> None:
        progress.console.quiet = True

    def __exit__(self, *_: object) -> None:
        progress.console.quiet = False


def _table(result: StreamResult) -> Table:
    shown = Table(title=result.stream, caption="points: 100 x the score", caption_justify="left")
    shown.add_column("")
    for name, below in [*headings(result)[:-1], ("backward transfer", "higher is better")]:
        shown.add_column(f"{name}\n{below}", justify="right")
    for row in summary_rows(result):
        transfer = backward_transfer(result.methods[row.method]) if row.method else None
        cells = [*row.scores, row.seen, row.forgetting, transfer]
        shown.add_row(row.label, *("" if cell is None else f"{points(cell):.1f}" for cell in cells))
    return shown
