"""The whole flow with a tiny model: real Prefect, MLflow, DVC and Git underneath, and the command as people run it."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fill_disk
import forked
import pytest
import torch
from merge_fixture import merged, tensors, write_weights
from mlflow import MlflowClient
from peft import PeftModel
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort
from project import Project
from tiny import load

from recall.checkpoints import Checkpoint

STAGES = ["version_dataset", "finetune", "cluster", "represent", "weigh", "merge", "evaluate"]


@pytest.fixture(scope="module")
def finished(new_project):
    """A project after its first run, and what `recall run --json` printed."""
    project = new_project("finished")
    project.result = project.run()
    return project


@pytest.fixture
def registry(finished):
    return client(finished)


def client(project):
    return MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")


def versions(project):
    """Update position to version, newest last."""
    found = client(project).search_model_versions("name = 'tiny'")
    return sorted(found, key=lambda version: int(version.version))


def one_learning_task(project, unseen=()):
    """And no baselines: nothing is made but the update itself."""
    change = {"learning_tasks": ["names"], "unseen": list(unseen)}
    project.params(lambda values: values.update(baselines=[]) or values["stream"].update(change))


def newest_flow_run():
    with get_client(sync_client=True) as prefect:
        return prefect.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def task_states(flow_run):
    """(name, state name) of a flow run's tasks."""
    with get_client(sync_client=True) as prefect:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
        for _ in range(60):
            runs = prefect.read_task_runs(flow_run_filter=wanted, sort=TaskRunSort.NAME_ASC, limit=200)
            # The server takes in a run's events by and by: until then a task is unnamed, or runs.
            if all(":" in run.name and run.state and run.state.is_final() for run in runs):
                break
            time.sleep(0.5)
    return [(run.name, run.state_name) for run in runs]


def test_it_ends_with_what_every_method_kept_and_lost(finished):
    result = finished.result
    assert result["learning_tasks"] == ["names", "reviews", "countries"]
    assert result["methods"].keys() == {"recall", "sequential", "average"}
    for method in result["methods"].values():
        assert method["scores"].keys() == {"names", "reviews", "countries", "films", "spanish"}
        assert all(method[name] is not None for name in ("average_accuracy", "forgetting", "forward_transfer"))
    assert result["experts"].keys() == {"names", "reviews", "countries"}
    assert result["version"] == "3"
    assert not result["draft"]
    assert (finished.folder / result["report"]).read_text().startswith("<!doctype html>")


def test_what_warnings_go_by_is_recorded_and_is_of_validation_rows(finished):
    folder, updates = finished.folder, finished.result["updates"]
    scores = {}
    for path in (folder / ".store" / "scores").glob("*/evaluation.json"):
        found = json.loads(path.read_text())
        scores.setdefault(len(found["row_scores"]), []).append(found["score"])
    for update in updates:
        name = update["learning_task"]
        rows = len((folder / "data" / name / "validation.jsonl").read_text().splitlines())
        tests = len((folder / "data" / name / "test.jsonl").read_text().splitlines())
        assert rows != tests, "or this would not tell the splits apart"
        assert update["on_validation"].keys() == {"before", "expert", "merged"}
        assert set(update["on_validation"].values()) <= set(scores[rows])
    assert updates[2]["label_bias"].keys() == {"reviews", "films"}, "classifications alone, unseen ones too"
    for bias in updates[2]["label_bias"].values():
        assert bias["given"] >= 0.5 and bias["true"] == 0.5 and 0 <= bias["auc"] <= 1


def test_the_report_is_written_again_from_the_registry_alone(finished, tmp_path):
    """In a folder without store, data or Git; the last version's is the stream's."""
    shutil.copy(finished.folder / "params.yaml", tmp_path)
    elsewhere = Project(tmp_path)
    elsewhere.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{finished.folder / 'mlflow.db'}"
    done = elsewhere.recall("report")
    first = Path(done.stdout.strip())
    assert first == tmp_path / "reports" / "report.html"
    assert first.read_text() == (finished.folder / finished.result["report"]).read_text()
    again = json.loads(elsewhere.recall("report", "--version", "3", "--out", "own.html", "--json").stdout)
    rows = [sorted(re.split("<tr>|</table>|\n", page.read_text())) for page in (tmp_path / "own.html", first)]
    assert rows[0] == rows[1], "but for the settings, which lineage.json has in the order of their names"
    assert again == finished.result | {"report": "own.html"}
    second = elsewhere.recall("report", "--version", "2", "--json")
    found = json.loads(second.stdout)
    assert (found["version"], found["learning_tasks"]) == ("2", ["names", "reviews"])
    assert found["methods"]["recall"]["forgetting"] is not None
    assert "left out, for they were not scored on the unseen learning tasks then: sequential, average" in second.stderr
    assert "version 2" in (tmp_path / "reports" / "version-2.html").read_text()
    refused = elsewhere.recall("report", "--version", "9", expect=2)
    assert "tiny has no version 9; it has 1, 2, 3" in refused.stderr
    nothing = elsewhere.recall("report", "--set", "stream.name=other", expect=2)
    assert "MLflow has no finished run of the stream other" in nothing.stderr


def test_every_update_is_a_version_with_the_tags_of_an_audit(finished, registry):
    tracked = {name: finished.dvc_hash(f"data/{name}") for name in ("names", "reviews", "films")}
    for position, version in enumerate(versions(finished), start=1):
        assert version.tags["recall.position"] == str(position)
        assert version.tags["recall.git_commit"] == finished.head()
        assert version.tags["recall.draft"] == "false"
        assert version.tags["recall.data.names"] == tracked["names"]
        assert version.tags["recall.data.films"] == tracked["films"]
        assert ("recall.data.reviews" in version.tags) == (position >= 2)
    assert str(registry.get_model_version_by_alias("tiny", "challenger").version) == "3"


def test_updates_are_nested_runs_with_data_sets_metrics_and_lineage(finished, registry, tmp_path):
    experiment = registry.get_experiment_by_name("tiny").experiment_id
    runs = registry.search_runs([experiment])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    updates = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in updates} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    last = next(run for run in updates if run.data.params["position"] == "3")
    digests = {entry.dataset.name: entry.dataset.digest for entry in last.inputs.dataset_inputs}
    assert digests["countries"] == finished.dvc_hash("data/countries")
    assert last.data.metrics["recall/countries"] == finished.result["methods"]["recall"]["scores"]["countries"]
    lineage = json.loads(Path(registry.download_artifacts(last.info.run_id, "lineage.json", str(tmp_path))).read_text())
    assert lineage["environment"]["threads"] == 1
    assert [entry["name"] for entry in lineage["data_sets"] if entry["trained_on"]] == ["countries"]


def test_the_registered_model_generates_in_a_process_without_our_code(finished, tmp_path):
    code = (
        "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1])\n"
        "generate = mlflow.transformers.load_model('models:/tiny@challenger')\n"
        # A pipeline draws its tokens, and may draw the end at once.
        "made = generate('names are', do_sample=False, min_new_tokens=1, max_new_tokens=3)[0]['generated_text']\n"
        "print(len(made) > len('names are'))\n"
        "assert not {'recall', 'tasks', 'flows'} & set(sys.modules)"
    )
    command = [sys.executable, "-I", "-c", code, f"sqlite:///{finished.folder / 'mlflow.db'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "True\n", done.stderr


def test_weights_and_merged_model_say_how_they_were_made(finished):
    folders = [finished.folder / ".store" / "merged" / name for name in finished.artifacts("merged")]
    records = [json.loads((folder / "recall.json").read_text()) for folder in folders]
    learned = [record for record in records if record["similarities"]]
    assert len(learned) == 3
    for record in learned:
        assert record["layers"] == ["embeddings", *(f"model.layers.{layer}" for layer in range(3))]
        assert record["models"][0] == "current"
        for row in record["weights"]:
            assert sum(row) == pytest.approx(1)
            assert row[-1] == max(row)
        # LoRA leaves the embeddings alone, so there the models agree, and share alike.
        assert record["weights"][0] == [0.5, 0.5]


def test_prefect_shows_readable_names_and_the_summary(finished):
    assert Artifact.get("continual-update").type == "markdown"
    assert finished.result["verdict"] in Artifact.get("continual-update").data
    assert Artifact.get("continual-update-scores").type == "table"
    assert newest_flow_run().name == "continual-update params.yaml"
    assert ("register: tiny update 3", "Completed") in task_states(newest_flow_run())


def test_a_flow_run_says_which_process_it_is_of_and_its_tasks_ask_for_no_limit_by_that(finished):
    run = newest_flow_run()
    assert [tag.split(":")[0] for tag in run.tags] == ["process"]
    with get_client(sync_client=True) as prefect:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        found = prefect.read_task_runs(flow_run_filter=wanted, limit=200)
    assert len(found) > 20
    assert not any(task.tags for task in found)


def test_results_pass_between_tasks_as_json_references(finished):
    results = list((finished.folder / ".store" / "results").iterdir())
    assert len(results) > 20
    for file in results:
        reference = json.loads(json.loads(file.read_text())["result"])
        assert len(reference["data"]["fingerprint"]) == 64


def test_a_second_run_does_nothing_and_says_so(finished):
    before = {kind: finished.artifacts(kind) for kind in ("experts", "merged", "scores")}
    done = finished.recall("run")
    assert "nothing new: every update was registered before" in done.stdout
    assert {kind: finished.artifacts(kind) for kind in before} == before
    assert len(versions(finished)) == 3


def test_recompute_goes_through_every_stage_from_the_cache_and_registers_nothing_twice(finished):
    # By the command as people start it, whose hash seed is another one.
    result = json.loads(finished.script("run", "--json", "--recompute").stdout)
    states = dict(task_states(newest_flow_run()))
    assert {name.split(":")[0] for name in states} == {*STAGES, "fixed_weights", "register"}
    assert {state for name, state in states.items() if not name.startswith("register")} == {"Cached"}
    assert len(versions(finished)) == 3
    assert result["methods"] == finished.result["methods"]


@pytest.mark.slow
def test_another_machine_goes_on_from_the_registry(new_project):
    """The registry, not a local file, says where the stream stands: the store is lost, and a learning task is new."""
    project = new_project("elsewhere")
    project.params(lambda values: values["stream"].update(learning_tasks=["names", "reviews"]))
    project.commit("two learning tasks")
    project.run()
    made = project.artifacts("merged")
    shutil.rmtree(project.folder / ".store")
    assert project.run()["updates"][1]["reused"], "nothing is new, so nothing is needed"

    project.params(lambda values: values["stream"].update(learning_tasks=["names", "reviews", "countries"]))
    project.commit("a third")
    grown = project.run()
    assert [update["reused"] for update in grown["updates"]] == [True, True, False]
    (second,) = [version for version in versions(project) if version.tags["recall.position"] == "2"]
    restored = second.tags["recall.merged_fingerprint"]
    manifest = project.folder / ".store" / "merged" / restored / "manifest.json"
    assert restored in made
    assert json.loads(manifest.read_text())["restored_from"].startswith("models:/")


def test_a_draft_becomes_a_version_in_its_own_right_once_all_is_committed(new_project):
    project = new_project("draft")
    one_learning_task(project)
    assert project.run()["draft"], "params.yaml is not committed"
    said = project.recall("run").stdout
    assert "promoted (the Git tree has uncommitted changes): commit your changes" in said
    made = project.artifacts("experts")
    project.commit("one learning task")
    assert not project.run()["draft"]
    (version,) = versions(project)
    assert version.tags["recall.draft"] == "false"
    assert version.tags["recall.git_commit"] == project.head()
    assert project.artifacts("experts") == made
    grow_with_another_baseline(project)


def grow_with_another_baseline(project):
    """A draft that scores a clean version again and goes on from there: each record points to this very run's."""
    project.params(
        lambda values: values.update(baselines=["average"]) or values["stream"]["learning_tasks"].append("reviews")
    )
    assert project.run()["draft"]
    first, second = versions(project)
    assert (first.tags["recall.draft"], second.tags["recall.draft"]) == ("false", "true")
    record = artifact(project, second.tags["recall.run_id"], "update.json")
    (earlier,) = record["earlier"]
    assert earlier != first.tags["recall.run_id"]
    assert artifact(project, earlier, "update.json")["scores"].keys() == {"recall", "average"}
    previous = artifact(project, second.tags["recall.run_id"], "lineage.json")["previous"]
    text = client(project).download_artifacts(earlier, "lineage.json")
    sha256 = hashlib.sha256(Path(text).read_bytes()).hexdigest()
    assert previous == {"version": str(first.version), "run_id": earlier, "lineage_sha256": sha256}


def artifact(project, run, name):
    return json.loads(Path(client(project).download_artifacts(run, name)).read_text())


def test_an_expert_is_merged_over_the_model_that_it_was_trained_from(finished, tmp_path):
    """`recall merge` on the store's own folders: the adapter names no base, and the first model is not it."""
    (second,) = [version for version in versions(finished) if version.tags["recall.position"] == "2"]
    models = artifact(finished, second.tags["recall.run_id"], "update.json")["models"]["recall"]
    store = finished.folder / ".store"
    expert, start = (store / ref["kind"] / ref["fingerprint"] for ref in (models["expert"], models["expert"]["base"]))
    assert start.parent.name == "merged"
    base = finished.folder / "data" / "base_model"
    rows = write_weights(tmp_path / "w.json", [[0.0, 1.0]] * 4)
    merged([base, expert], tmp_path / "out", "--weights", rows)
    whole = PeftModel.from_pretrained(load(Checkpoint(start)), expert).merge_and_unload().state_dict()
    for name, found in tensors(tmp_path / "out").items():
        torch.testing.assert_close(found, whole[name], rtol=1e-4, atol=1e-6)


def test_a_stream_may_shrink_again_and_its_unseen_tasks_change_without_a_new_version(finished):
    shorter = finished.run("--set", "stream.learning_tasks=[names, reviews]")
    assert shorter["methods"]["average"]["scores"]["films"] is not None
    other = finished.run("--set", "stream.unseen=[films]")
    assert other["version"] == "3"
    assert len(versions(finished)) == 3


def test_a_failure_in_a_stage_is_one_sentence(new_project):
    """A disk that is full when the expert is written: no traceback, exit code 1, and the next run goes on."""
    project = new_project("failing")
    one_learning_task(project)
    script = Path(__file__).parent / "fill_disk.py"
    done = forked.run(script, "run", folder=project.folder, environment=project.environment)
    if done.returncode == fill_disk.NO_NAMESPACE:
        pytest.skip("this machine lets nobody mount a file system in a namespace")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "recall: experts cannot be written to the store" in done.stderr
    assert "No space left on device" in done.stderr
    assert not project.artifacts("experts")
    project.run()


@pytest.mark.slow
def test_a_stream_grows_and_its_data_changes(new_project):
    """A new learning task makes one update; changed data makes new versions from its update on, and nothing else."""
    project = new_project("growing")
    project.params(lambda values: values["stream"].update(learning_tasks=["names", "reviews"]))
    project.commit("two learning tasks")
    project.run()
    first = {kind: project.artifacts(kind) for kind in ("experts", "merged", "samples")}

    project.params(lambda values: values["stream"].update(learning_tasks=["names", "reviews", "countries"]))
    project.commit("a third")
    grown = project.run()
    assert [update["reused"] for update in grown["updates"]] == [True, True, False]
    for kind, made in first.items():
        assert project.artifacts(kind).items() >= made.items()
    assert len(project.artifacts("samples")) == len(first["samples"]) + 1

    second = project.artifacts("experts")
    project.write_data("reviews", train=(0, 28))
    refused = project.recall("run", expect=2)
    assert "data/reviews differs from what DVC tracks: train.jsonl (changed)" in refused.stderr
    assert "--take-in reviews" in refused.stderr
    assert project.artifacts("experts") == second

    changed = project.run("--take-in", "reviews")
    assert [update["reused"] for update in changed["updates"]] == [True, False, False]
    assert changed["draft"], "the new data.dvc is not committed"
    assert [version.tags["recall.position"] for version in versions(project)] == ["1", "2", "3", "2", "3"]
    assert project.artifacts("experts").items() >= second.items()


def test_new_test_rows_train_nothing_again(new_project):
    project = new_project("test_rows")
    one_learning_task(project, unseen=["films"])
    project.run()
    before = {kind: project.artifacts(kind) for kind in ("experts", "samples", "representations", "weights", "merged")}
    project.write_data("names", test=(200, 8))
    project.run("--take-in", "names")
    assert {kind: project.artifacts(kind) for kind in before} == before
