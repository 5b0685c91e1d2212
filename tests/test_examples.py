"""Every example runs from its file, learns something, and says what it found."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.example

EXAMPLES = Path(__file__).parent.parent / "examples"
# What a model that has learned nothing scores, whatever it answers; of the dates, the commonest value in every field.
CHANCE = {"encoder_classifier": 1 / 2, "json_extraction": 0.05, "rotated_digits": 1 / 10, "spoken_words": 1 / 10}
# How far above that an expert must be; people's mood in a sentence is hard to learn from a few hundred of them.
MARGIN = {"encoder_classifier": 0.05, "json_extraction": 0.3, "rotated_digits": 0.3, "spoken_words": 0.3}
# Why a machine may not be able to run it.
MISSING = ("espeak-ng is not installed", "pip could not download")


def ran(name, *options):
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--quick", *options], capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module", params=CHANCE)
def example(request):
    """Its name and its JSON."""
    done = ran(request.param, "--json")
    if done.returncode and any(reason in done.stderr for reason in MISSING):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return request.param, json.loads(done.stdout)


def test_every_example_is_tested():
    assert {file.stem for file in EXAMPLES.glob("*.py")} - {"plain_stream"} == set(CHANCE)


def test_every_method_has_every_score(example):
    _, found = example
    assert list(found["methods"]) == ["sequential", "average", "recall"]
    assert len(found["learning_tasks"]) == 3
    for numbers in found["methods"].values():
        assert list(numbers["scores"]) == found["learning_tasks"]
        scores = [*numbers["scores"].values(), numbers["average_accuracy"]]
        assert all(0 <= score <= 1 for score in scores)
        assert all(math.isfinite(numbers[name]) for name in ("forgetting", "backward_transfer"))
        assert numbers["average_accuracy"] == pytest.approx(sum(scores[:3]) / 3)
    assert "RECALL" in found["verdict"]


def test_every_expert_has_learned_its_learning_task(example):
    name, found = example
    assert list(found["experts"]) == found["learning_tasks"]
    scores = found["experts"]
    if name == "encoder_classifier":  # a hundred test rows a learning task cannot tell 0.58 from chance
        scores = {"all": sum(scores.values()) / len(scores)}
    for task, score in scores.items():
        assert score > CHANCE[name] + MARGIN[name], task


def test_the_methods_do_not_all_end_at_the_same_model(example):
    _, found = example
    ends = {json.dumps(numbers["scores"]) for numbers in found["methods"].values()}
    assert len(ends) > 1
