"""Every merging baseline beside RECALL, through the whole flow with a tiny model."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import load

from recall.checkpoints import Checkpoint
from tasks.store import Store

MERGING = ["average", "slerp", "task_arithmetic", "ties", "dare", "pruned_average", "lm_cocktail", "regmean"]


def use(project, baselines, **sections):
    def change(values):
        values["stream"] = {"name": "tiny", "learning_tasks": ["names", "reviews"], "unseen": ["films"]}
        values["baselines"] = baselines
        values.update(sections)

    project.params(change)
    project.commit("baselines")


@pytest.fixture(scope="module")
def in_sequence(new_project):
    """Two updates by every method, each merging its current model with its new expert."""
    project = new_project("in_sequence")
    # Half way SLERP is the average, where models are as near as these.
    use(project, MERGING, merging={"fraction": 0.3})
    project.result = project.run()
    return project


@pytest.fixture(scope="module")
def from_base(new_project):
    """Two updates in which every expert starts from the base, and all of them are merged."""
    project = new_project("from_base")
    merging = {"scale": 0.5, "density": 0.4}
    use(project, ["task_arithmetic", "ties", "regmean"], update={"start_from": "base"}, merging=merging)
    project.result = project.run()
    return project


def record(project):
    """`update.json` of the newest version."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    newest = max(client.search_model_versions("name = 'tiny'"), key=lambda version: int(version.version))
    return json.loads((project.folder / client.download_artifacts(newest.run_id, "update.json")).read_text())


def model(project, ref):
    return load_file(project.folder / ".store" / ref["kind"] / ref["fingerprint"] / "model.safetensors")


def test_every_method_is_scored_and_named(in_sequence):
    methods = in_sequence.result["methods"]
    assert methods.keys() == {"recall", *MERGING}
    for method in methods.values():
        assert None not in method["scores"].values()
    report = (in_sequence.folder / "reports" / "report.html").read_text()
    for name in ("SLERP", "task arithmetic", "TIES", "DARE", "pruned average", "LM-Cocktail", "RegMean"):
        assert name in report


def test_no_two_methods_end_with_the_same_model(in_sequence):
    models = record(in_sequence)["models"]
    merged = {
        name: model(in_sequence, found["current"])["model.layers.0.mlp.up_proj.weight"]
        for name, found in models.items()
    }
    names = list(merged)
    same = [(a, b) for i, a in enumerate(names) for b in names[:i] if torch.equal(merged[a], merged[b])]
    # With one task vector there is no sign to elect.
    assert same == [("pruned_average", "ties")]


def test_lm_cocktail_weighs_by_the_losses_that_it_found(in_sequence):
    weights = record(in_sequence)["models"]["lm_cocktail"]["weights"]
    stored = in_sequence.folder / ".store" / "weights" / weights["fingerprint"] / "weights.json"
    rows = json.loads(stored.read_text())["weights"]
    np.testing.assert_allclose(np.sum(rows, axis=1), 1)
    assert rows[0] == rows[-1]
    assert rows[0][0] != rows[0][1]


def test_regmean_keeps_moments_of_every_expert(in_sequence):
    store = Store(root=in_sequence.folder / ".store")
    manifests = [store.manifest("moments", name) for name in in_sequence.artifacts("moments")]
    assert len(manifests) == 2
    assert all("moments.safetensors" in str(manifest["files"]) for manifest in manifests)


def test_one_setting_changed_makes_only_the_methods_that_read_it_again(in_sequence):
    before = in_sequence.artifacts("merged")
    result = in_sequence.run("--set", "merging.fraction=0.25")
    added = in_sequence.artifacts("merged").keys() - before.keys()
    # SLERP's two updates; the second expert starts from another model too.
    assert len(added) == 2
    assert result["version"] == in_sequence.result["version"]


def test_from_the_base_task_arithmetic_adds_every_expert_s_difference(from_base):
    models = record(from_base)["models"]["task_arithmetic"]
    base = Checkpoint(from_base.folder / "data" / "base_model")
    experts = [
        PeftModel.from_pretrained(load(base).float(), from_base.folder / ".store" / "experts" / name).merge_and_unload()
        for name in from_base.artifacts("experts")
    ]
    assert len(experts) == 2, "every method trains the same experts from the base, so they are made once"
    merged, first = model(from_base, models["current"]), load(base).float().state_dict()
    name = "model.layers.1.self_attn.q_proj.weight"
    expected = first[name] + 0.5 * sum(expert.state_dict()[name] - first[name] for expert in experts)
    torch.testing.assert_close(merged[name].float(), expected, rtol=1e-2, atol=1e-3)


def test_from_the_base_regmean_merges_the_experts_alone(from_base):
    store = Store(root=from_base.folder / ".store")
    current = record(from_base)["models"]["regmean"]["current"]
    inputs = store.manifest("merged", current["fingerprint"])["inputs"]
    assert inputs["pool"] == inputs["pool"][-2:]
    assert set(inputs["pool"]) == set(from_base.artifacts("experts"))
    assert [len(group) for group in inputs["moments"]] == [1, 1]
