"""Typical samples: the nearest sample to each K-means centroid, no two the same (docs/method.md, step 2)."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.loaded_models import loaded
from recall.representations import represent
from recall.sampling import farthest_samples, random_samples, typical_samples
from recall.settings import SamplingSettings
from tasks.cluster import cluster
from tasks.stage import Job


def blobs(*centres, size=10):
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(centre, 0.1, size=(size, 2)) for centre in centres])


def test_one_sample_of_every_cluster_is_chosen():
    chosen = typical_samples(blobs((0, 0), (10, 0), (0, 10)), clusters=3, seed=0)
    assert sorted(index // 10 for index in chosen.indices) == [0, 1, 2]
    assert chosen.cluster_sizes == [10, 10, 10]


def test_it_is_the_sample_nearest_to_the_centroid():
    points_PE = blobs((0, 0), (10, 0))
    for index in typical_samples(points_PE, clusters=2, seed=0).indices:
        blob_PE = points_PE[index // 10 * 10 : index // 10 * 10 + 10]
        distances = np.square(blob_PE - blob_PE.mean(axis=0)).sum(axis=1)
        assert index % 10 == distances.argmin()


def test_no_sample_is_chosen_twice_even_where_points_coincide():
    points_PE = np.concatenate([np.zeros((5, 2)), np.ones((5, 2))])
    with pytest.warns(UserWarning, match="distinct clusters"):
        chosen = typical_samples(points_PE, clusters=6, seed=0)
    assert len(set(chosen.indices)) == 6


def test_as_many_clusters_as_samples_takes_them_all():
    assert typical_samples(np.random.default_rng(0).normal(size=(7, 3)), clusters=7, seed=0).indices == list(range(7))


def test_the_same_seed_chooses_the_same_samples():
    points_PE = np.random.default_rng(1).normal(size=(60, 8)).astype(np.float32)
    assert typical_samples(points_PE, 8, seed=3) == typical_samples(points_PE, 8, seed=3)


def test_fewer_samples_than_clusters_are_refused():
    with pytest.raises(BadInput, match="3 samples cannot form 4 clusters"):
        typical_samples(np.zeros((3, 2)), clusters=4, seed=0)
    with pytest.raises(BadInput, match="3 samples cannot form 4 clusters"):
        farthest_samples(np.zeros((3, 2)), 4)
    with pytest.raises(BadInput, match="3 samples cannot form 4 clusters"):
        random_samples(3, 4, seed=0)


def test_the_farthest_samples_start_in_the_middle_and_then_take_the_ends():
    line_PE = np.array([[0.0], [4.0], [5.0], [6.0], [11.0]])
    assert farthest_samples(line_PE, 1).indices == [2]
    assert farthest_samples(line_PE, 2).indices == [2, 4], "6 away from the middle"
    assert farthest_samples(line_PE, 3) == ([0, 2, 4], [3, 1, 1]), "5 from the middle; 4, 5 and 6 belong to that"


def test_the_farthest_samples_are_never_the_same_even_where_points_coincide():
    assert farthest_samples(np.zeros((4, 2)), 4).indices == [0, 1, 2, 3]


def test_random_samples_are_any_and_the_same_for_the_same_seed():
    drawn = [index for seed in range(200) for index in random_samples(10, 3, seed).indices]
    assert len(drawn) == 600
    counts = np.bincount(drawn, minlength=10)
    assert (abs(counts - 60) < 30).all(), "each as often as the others, within 4.6 standard deviations"
    assert random_samples(10, 3, seed=7) == random_samples(10, 3, seed=7)


@pytest.mark.parametrize("choice", ["kmeans", "farthest", "random"])
def test_the_stage_chooses_as_the_settings_say(tiny_model_folder, tmp_path, choice):
    model = Checkpoint(tiny_model_folder)
    prompts = [f"{word} {number}" for number in range(6) for word in ("good", "bad", "a much longer prompt", "so")]
    with loaded(model, torch.float32) as (network, tokenizer):
        last_PE = represent(network, tokenizer, prompts, batch_size=16, max_tokens=64, last_layer_only=True)[0]
    expected = {
        "kmeans": typical_samples(last_PE, 5, seed=3),
        "farthest": farthest_samples(last_PE, 5),
        "random": random_samples(len(prompts), 5, seed=3),
    }
    assert len({tuple(found.indices) for found in expected.values()}) == 3
    fields = cluster.body(
        Job(out=tmp_path, work=tmp_path, label="it"),
        expert=None if choice == "random" else SimpleNamespace(checkpoint=lambda: model),  # no model is read in vain
        train=SimpleNamespace(read=lambda: [SimpleNamespace(prompt=prompt) for prompt in prompts]),
        settings=SamplingSettings(choice=choice, clusters=5, seed=3),
    )
    chosen = [json.loads(line)["prompt"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert chosen == [prompts[index] for index in expected[choice].indices]
    assert fields == {"count": 5, "cluster_sizes": expected[choice].cluster_sizes}
