"""Every baseline beside RECALL, through the whole flow with a tiny model."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import load

from recall.checkpoints import Checkpoint
from recall.standings import LABELS
from tasks.store import Store

TRAINING = ["sequential", "ewc", "replay"]
HELDOUT = [f"held out number {i}" for i in range(9)]
pytestmark = pytest.mark.slow
MERGING = [
    "average",
    "slerp",
    "task_arithmetic",
    "ties",
    "dare",
    "pruned_average",
    "lm_cocktail",
    "regmean",
    "recall_moments",
]


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
    lines = [json.dumps({"text": text}) for text in HELDOUT]
    (project.folder / "heldout.jsonl").write_text("\n".join(lines) + "\n")
    # Half way SLERP is the average, where models are as near as these.
    sampling = {"source": "heldout", "file": "heldout.jsonl", "clusters": 5}
    sections = {"merging": {"fraction": 0.3}, "representations": {"max_tokens": 32}}
    use(project, [*MERGING, *TRAINING], sampling=sampling, **sections)
    project.result = project.run()
    return project


@pytest.fixture(scope="module")
def from_base(new_project):
    """Two updates in which every expert starts from the base, and all of them are merged."""
    project = new_project("from_base")
    merging = {"scale": 0.5, "density": 0.4}
    sections = {
        "update": {"start_from": "base"},
        "sampling": {"source": "generated", "generated": 12, "clusters": 5},
        "representations": {"pooling": "skip_first"},
        "weighting": {"granularity": "module", "similarity": "cosine"},
    }
    use(project, ["task_arithmetic", "ties", "regmean", "recall_moments"], merging=merging, **sections)
    project.result = project.run()
    return project


def manifests(project, kind):
    """Every artifact of a kind, by fingerprint."""
    store = Store(root=project.folder / ".store")
    return {name: store.manifest(kind, name) for name in project.artifacts(kind)}


def train_split(project, name):
    """The fingerprint of a learning task's training rows."""
    (found,) = (
        manifest["fields"]["train"]["fingerprint"]
        for manifest in manifests(project, "datasets").values()
        if manifest["fields"]["learning_task"] == name
    )
    return found


def record(project):
    """`update.json` of the newest version."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    newest = max(client.search_model_versions("name = 'tiny'"), key=lambda version: int(version.version))
    return json.loads((project.folder / client.download_artifacts(newest.run_id, "update.json")).read_text())


def model(project, ref):
    return load_file(project.folder / ".store" / ref["kind"] / ref["fingerprint"] / "model.safetensors")


def stored(project, ref, file):
    return (project.folder / ".store" / ref["kind"] / ref["fingerprint"] / file).read_text()


def test_samples_may_come_from_a_file(in_sequence):
    samples = record(in_sequence)["models"]["recall"]["samples"]
    chosen = [json.loads(line)["prompt"] for line in stored(in_sequence, samples, "samples.jsonl").splitlines()]
    assert len(chosen) == 5
    assert set(chosen) < set(HELDOUT)


def test_samples_may_be_made_up_by_the_expert(from_base):
    samples = record(from_base)["models"]["recall"]["samples"]
    chosen = [json.loads(line)["prompt"] for line in stored(from_base, samples, "samples.jsonl").splitlines()]
    trained_on = (from_base.folder / "data" / "reviews" / "train.jsonl").read_text()
    assert len(set(chosen)) == 5
    assert not any(json.dumps(prompt) in trained_on for prompt in chosen)


def test_attention_and_mlp_have_weights_of_their_own(from_base):
    models = record(from_base)["models"]["recall"]
    found = json.loads(stored(from_base, models["weights"], "weights.json"))
    assert found["layers"][:3] == ["embeddings", "model.layers.0.attention", "model.layers.0.mlp"]
    assert found["sigma"] == [], "the cosine needs none"
    assert found["weights"][1] != found["weights"][2]
    base = load_file(from_base.folder / "data" / "base_model" / "model.safetensors")
    merged = model(from_base, models["current"])
    assert merged.keys() == base.keys()


def test_every_method_is_scored_and_named(in_sequence):
    methods = in_sequence.result["methods"]
    assert methods.keys() == {"recall", *MERGING, *TRAINING}
    for method in methods.values():
        assert None not in method["scores"].values()
    report = (in_sequence.folder / "reports" / "report.html").read_text()
    assert "EWC" in in_sequence.result["verdict"]
    for name in [LABELS[method] for method in (*MERGING, *TRAINING)]:
        assert name in report


def test_no_two_methods_end_with_the_same_model(in_sequence):
    models = {name: found for name, found in record(in_sequence)["models"].items() if name not in TRAINING}
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
    made = manifests(in_sequence, "weights")[weights["fingerprint"]]
    assert (made["inputs"]["temperature"], made["inputs"]["max_tokens"]) == (1.0, 32)


def test_regmean_keeps_moments_of_every_expert(in_sequence):
    store = Store(root=in_sequence.folder / ".store")
    manifests = [store.manifest("moments", name) for name in in_sequence.artifacts("moments")]
    # After one update both methods have nothing but the first expert, so both train the second from that.
    assert len(manifests) == 2
    assert all("moments.safetensors" in str(manifest["files"]) for manifest in manifests)


def test_recall_moments_weighs_by_similarity_what_its_own_experts_left(in_sequence):
    models = record(in_sequence)["models"]["recall_moments"]
    inputs = Store(root=in_sequence.folder / ".store").manifest("merged", models["current"]["fingerprint"])["inputs"]
    assert inputs["weights"] == models["weights"]["fingerprint"]
    assert [len(group) for group in inputs["moments"]] == [1, 1], "the current model's past, and the expert's own"
    merged = in_sequence.folder / ".store" / "merged" / models["current"]["fingerprint"] / "recall.json"
    rows = json.loads(merged.read_text())["weights"]
    np.testing.assert_allclose(np.sum(rows, axis=1), 1)
    assert all(row[-1] >= 0.5 for row in rows), "the newest is the likest to itself"


def test_with_nothing_to_remember_yet_all_share_one_expert(in_sequence):
    experts = manifests(in_sequence, "experts").values()
    first = [found for found in experts if found["inputs"]["train"] == train_split(in_sequence, "names")]
    assert [sorted(found["inputs"]) for found in first] == [["settings", "start", "train"]]


def test_ewc_is_given_of_the_past_its_model_and_fisher_alone(in_sequence):
    (expert,) = (found for found in manifests(in_sequence, "experts").values() if "fisher" in found["inputs"])
    assert sorted(expert["inputs"]) == ["fisher", "settings", "start", "strength", "train"]
    assert expert["inputs"]["train"] == train_split(in_sequence, "reviews")
    fishers = manifests(in_sequence, "fisher")
    first = fishers[expert["inputs"]["fisher"]]
    (second,) = (found for found in fishers.values() if found != first)
    assert first["inputs"]["earlier"] is None
    assert first["inputs"]["train"] == train_split(in_sequence, "names")
    assert second["inputs"]["earlier"] == first["fingerprint"]
    assert second["inputs"]["train"] == train_split(in_sequence, "reviews")
    assert list(first["files"]) == ["fisher.safetensors"]


def test_replay_alone_is_given_old_rows(in_sequence):
    with_old = [found for found in manifests(in_sequence, "experts").values() if "earlier" in found["inputs"]]
    assert [found["inputs"]["earlier"] for found in with_old] == [[train_split(in_sequence, "names")]]


def test_a_changed_setting_makes_only_the_methods_that_read_it_again(in_sequence):
    before = {kind: in_sequence.artifacts(kind) for kind in ("experts", "fisher", "merged")}
    changed = ("merging.fraction=0.25", "finetuning.ewc.strength=1", "finetuning.replay.share=0.5")
    result = in_sequence.run(*(word for setting in changed for word in ("--set", setting)))
    made = {kind: in_sequence.artifacts(kind).keys() - found.keys() for kind, found in before.items()}
    assert len(made["merged"]) == 2 + 1 + 1, "both updates of SLERP, the second ones of EWC and replay"
    assert len(made["experts"]) == 1 + 1 + 1
    assert len(made["fisher"]) == 1, "that of the second update, at another model"
    assert all(in_sequence.artifacts(kind).items() >= found.items() for kind, found in before.items())
    assert result["version"] == in_sequence.result["version"]


def test_a_change_of_that_file_makes_a_new_model(in_sequence):
    before = in_sequence.artifacts("samples")
    (in_sequence.folder / "heldout.jsonl").write_text("\n".join(f'{{"text": "other {i}"}}' for i in range(9)) + "\n")
    result = in_sequence.run("--set", "baselines=[]")
    assert [update["reused"] for update in result["updates"]] == [False, False]
    assert len(in_sequence.artifacts("samples").keys() - before.keys()) == 2


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


@pytest.mark.parametrize("method", ["regmean", "recall_moments"])
def test_from_the_base_moments_merge_the_experts_alone(from_base, method):
    store = Store(root=from_base.folder / ".store")
    current = record(from_base)["models"][method]["current"]
    inputs = store.manifest("merged", current["fingerprint"])["inputs"]
    assert inputs["pool"] == inputs["pool"][-2:]
    assert set(inputs["pool"]) == set(from_base.artifacts("experts"))
    assert [len(group) for group in inputs["moments"]] == [1, 1]


def test_a_machine_without_the_store_makes_the_baselines_models_again_and_goes_on(new_project):
    project = new_project("elsewhere")
    baselines = {"baselines": ["ewc", "replay"]}
    stream = {"name": "tiny", "learning_tasks": ["names"], "unseen": []}
    project.params(lambda values: values.update(stream=stream, **baselines))
    project.commit("one learning task")
    project.run()
    made = {kind: project.artifacts(kind).keys() for kind in ("experts", "fisher")}
    shutil.rmtree(project.folder / ".store")
    project.params(lambda values: values["stream"].update(learning_tasks=["names", "reviews"]))
    project.commit("another learning task")
    grown = project.run()
    assert [update["reused"] for update in grown["updates"]] == [True, False]
    assert project.artifacts("fisher").keys() > made["fisher"]
    (replayed,) = (found for found in manifests(project, "experts").values() if "earlier" in found["inputs"])
    assert replayed["inputs"]["earlier"] == [train_split(project, "names")]
