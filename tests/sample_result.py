"""A stream result as a real run yields it, made by arithmetic: 3 updates, 31 layers, 2 models, 2 unseen."""

from __future__ import annotations

from math import exp

from recall.results import MergeWeights, ScoreMatrix, StreamResult, UpdateResult

TASKS = ["reviews", "names_fr", "commonsense"]
UNSEEN = ["tweets", "trivia"]

RECALL = [
    [0.540, 0.182, 0.310, 0.515, 0.385],
    [0.870, 0.190, 0.305, 0.560, 0.390],
    [0.850, 0.352, 0.315, 0.570, 0.380],
    [0.846, 0.338, 0.610, 0.565, 0.395],
]
SEQUENTIAL = [
    [0.540, 0.182, 0.310, 0.515, 0.385],
    [0.890, 0.195, 0.300, None, None],
    [0.770, 0.420, 0.290, None, None],
    [0.740, 0.255, 0.690, 0.540, 0.360],
]
AVERAGE = [
    [0.540, 0.182, 0.310, 0.515, 0.385],
    [0.860, 0.190, 0.305, None, None],
    [0.820, 0.300, 0.315, None, None],
    [0.810, 0.280, 0.520, 0.560, 0.390],
]


def sample_result() -> StreamResult:
    """RECALL, sequential fine-tuning and the plain average on one stream of three learning tasks."""

    def matrix(scores: list[list[float | None]]) -> ScoreMatrix:
        kept = [[s if j >= 3 or i == 0 or j <= i else None for j, s in enumerate(row)] for i, row in enumerate(scores)]
        return ScoreMatrix(learning_tasks=TASKS, unseen=UNSEEN, scores=kept)

    seconds = {
        "versioning": 0.2,
        "finetune": 71.4,
        "cluster": 6.1,
        "represent": 4.4,
        "weigh": 0.1,
        "merge": 1.3,
        "evaluate": 24.8,
        "register": 2.9,
    }
    updates = [
        UpdateResult(
            learning_task=task,
            expert_score=score,
            merge=merge(number),
            version=str(number + 1),
            reused=number == 0,
            seconds=seconds,
        )
        for number, (task, score) in enumerate(zip(TASKS, [0.89, 0.44, 0.70], strict=True))
    ]
    return StreamResult(
        stream="default",
        metrics={"reviews": "accuracy", "names_fr": "chrf", "commonsense": "accuracy"}
        | dict.fromkeys(UNSEEN, "accuracy"),
        methods={"recall": matrix(RECALL), "sequential": matrix(SEQUENTIAL), "average": matrix(AVERAGE)},
        updates=updates,
        settings={
            "stream": {"name": "default", "learning_tasks": TASKS, "unseen": UNSEEN},
            "finetuning": {"lora": {"r": 16, "alpha": 32}, "epochs": 2, "learning_rate": 5e-4},
            "weighting": {"sigma": "median", "temperature": 1.0},
        },
        draft=True,
    )


def merge(number: int, layers: int = 31, models: int = 2) -> MergeWeights:
    """Similarities that fall with depth, the more so the older the model, and their softmax."""
    similarities = [
        [exp(-((models - 1 - model) * layer / layers) * (1 + number / 2)) for model in range(models)]
        for layer in range(layers)
    ]
    weights = [[exp(s) / sum(exp(t) for t in row) for s in row] for row in similarities]
    return MergeWeights(
        layers=["embeddings", *(f"layer {layer}" for layer in range(1, layers))],
        models=[*(f"model {model}" for model in range(models - 2)), "merged so far", "newest expert"][-models:],
        weights=weights,
        similarities=similarities,
        sigma=[1.0 + layer for layer in range(layers)],
    )
