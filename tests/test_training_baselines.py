"""EWC and experience replay beside sequential fine-tuning, through the whole flow with a tiny model."""

import shutil

import pytest

from tasks.store import Store

BASELINES = ["sequential", "ewc", "replay"]


def use(project, *learning_tasks):
    project.params(
        lambda values: values.update(
            stream={"name": "tiny", "learning_tasks": list(learning_tasks), "unseen": ["films"]}, baselines=BASELINES
        )
    )
    project.commit("learning tasks")


@pytest.fixture(scope="module")
def finished(new_project):
    """A project after two updates, and what `recall run --json` printed."""
    project = new_project("training_baselines")
    use(project, "names", "reviews")
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


def test_every_method_has_all_scores_and_is_named(finished):
    methods = finished.result["methods"]
    assert methods.keys() == {"recall", *BASELINES}
    for method in methods.values():
        assert method["scores"].keys() == {"names", "reviews", "films"}
        assert None not in method["scores"].values()
        assert method["forgetting"] is not None
    report = (finished.folder / "reports" / "report.html").read_text()
    for name in ("sequential fine-tuning", "EWC", "experience replay"):
        assert name in finished.result["verdict"]
        assert name in report


def test_with_nothing_to_remember_yet_all_share_one_expert(finished):
    """One of the first update; RECALL, sequential, EWC and replay start from models of their own in the second."""
    experts = manifests(finished, "experts").values()
    first = [found for found in experts if found["inputs"]["train"] == train_split(finished, "names")]
    second = [found for found in experts if found["inputs"]["train"] == train_split(finished, "reviews")]
    assert [sorted(found["inputs"]) for found in first] == [["settings", "start", "train"]]
    assert len(second) == len(["recall", *BASELINES])


def test_ewc_is_given_of_the_past_its_model_and_fisher_alone(finished):
    (expert,) = (found for found in manifests(finished, "experts").values() if "fisher" in found["inputs"])
    assert sorted(expert["inputs"]) == ["fisher", "settings", "start", "strength", "train"]
    assert expert["inputs"]["train"] == train_split(finished, "reviews")
    fishers = manifests(finished, "fisher")
    first = fishers[expert["inputs"]["fisher"]]
    (second,) = (found for found in fishers.values() if found != first)
    assert first["inputs"]["earlier"] is None
    assert first["inputs"]["train"] == train_split(finished, "names")
    assert second["inputs"]["earlier"] == first["fingerprint"]
    assert second["inputs"]["train"] == train_split(finished, "reviews")
    assert list(first["files"]) == ["fisher.safetensors"]


def test_replay_alone_is_given_old_rows(finished):
    with_old = [found for found in manifests(finished, "experts").values() if "earlier" in found["inputs"]]
    assert [found["inputs"]["earlier"] for found in with_old] == [[train_split(finished, "names")]]


def test_their_settings_reach_no_other_methods_training(finished):
    before = {kind: finished.artifacts(kind) for kind in ("experts", "fisher", "merged")}
    finished.run("--set", "finetuning.ewc.strength=1", "--set", "finetuning.replay.share=0.5")
    made = {kind: finished.artifacts(kind).keys() - found.keys() for kind, found in before.items()}
    new = [manifests(finished, "experts")[name]["inputs"] for name in made["experts"]]
    assert sorted(inputs.get("strength", inputs.get("share")) for inputs in new) == [0.5, 1]
    assert len(made["fisher"]) == 1, "that of the second update, at another model"
    assert all(finished.artifacts(kind).items() >= found.items() for kind, found in before.items())


def test_a_machine_without_the_store_makes_them_again_and_goes_on(new_project):
    project = new_project("baselines_elsewhere")
    use(project, "names", "reviews")
    project.run()
    made = {kind: project.artifacts(kind).keys() for kind in ("experts", "fisher")}
    shutil.rmtree(project.folder / ".store")
    use(project, "names", "reviews", "countries")
    grown = project.run()
    assert [update["reused"] for update in grown["updates"]] == [True, True, False]
    assert project.artifacts("fisher").keys() > made["fisher"]
    third = [found["inputs"] for found in manifests(project, "experts").values() if "earlier" in found["inputs"]]
    assert sorted(len(inputs["earlier"]) for inputs in third) == [1, 2]
