"""`update.merge: recall_moments`: updates make the baseline's models, register them, go on from MLflow, are audited."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from audited_project import Snapshot, artifact, as_it_was, audit, by_status, flip_a_bit, only_fault, with_code
from sample_result import sample_result

from flows.preflight import Inputs
from flows.stream_state import Stream
from recall.errors import BadInput
from recall.lineage import read_lineage
from recall.load_settings import load_settings
from recall.merge_settings import MergingSettings
from recall.remaking_moments import moments_difference
from recall.report import render
from recall.results import MergeWeights
from recall.save_tensors import save_tensors
from recall.verdict import verdict
from tasks import registry
from tasks.refs import CheckpointRef, digest, file_sha256
from tasks.store import Store

ROOT = Path(__file__).parent.parent
MOMENTS = "moments/moments.safetensors"
THREE = ("--set", "stream.learning_tasks=[names, reviews, countries]")


@pytest.fixture(scope="module")
def finished(new_project, tmp_path_factory):
    """Two updates that merge by moments, with no baseline."""
    project = new_project("by_moments")
    project.params(lambda values: values.update(update={"merge": "recall_moments"}))
    with_code(project)
    project.snapshot = Snapshot(project.folder, tmp_path_factory.mktemp("safe"))
    return project


@pytest.fixture
def project(finished, monkeypatch):
    """The finished project, as it was, with this process in it."""
    yield from as_it_was(finished, monkeypatch)


@pytest.fixture(scope="module")
def reference(finished, tmp_path_factory):
    """The weights that the baseline comes to beside the paper's merge, undisturbed and in a store of its own."""
    return as_a_baseline(finished, tmp_path_factory.mktemp("reference"), *THREE)


def as_a_baseline(project, store, *arguments):
    """SHA-256 of the baseline's weights after each update."""
    settings = (f"store={store}", "stream.name=reference", "update.merge=recall", "baselines=[recall_moments]")
    project.run(*arguments, *(word for setting in settings for word in ("--set", setting)))
    found = {}
    for file in project.folder.glob("mlartifacts/**/update.json"):
        record = json.loads(file.read_text())
        if "recall_moments" in record["models"]:
            ref = record["models"]["recall_moments"]["current"]
            found[record["position"]] = file_sha256(store / ref["kind"] / ref["fingerprint"] / "model.safetensors")
    return [found[position] for position in sorted(found)]


def weights(version):
    return registry.version("tiny", str(version)).tags[registry.SHA256]


def models(project, version):
    return json.loads(artifact(project, version, "update.json").read_text())["models"]["recall"]


@pytest.mark.slow
def test_an_update_registers_the_very_model_that_the_baseline_makes(project, reference):
    assert [weights(1), weights(2)] == reference[:2]


def test_the_first_update_keeps_its_expert_whole_and_the_next_weighs_moments_by_similarity(project):
    first, second = models(project, 1), models(project, 2)
    assert not first["representations"]
    kept = MergeWeights.model_validate_json(artifact(project, 1, "weights.json").read_text())
    assert (kept.similarities, {tuple(row) for row in kept.weights}) == ([], {(0.0, 1.0)})
    inputs = Store(root=project.folder / ".store").manifest("merged", second["current"]["fingerprint"])["inputs"]
    assert inputs["moments"] == [[first["moments"]["fingerprint"]], [second["moments"]["fingerprint"]]]
    assert inputs["weights"] == second["weights"]["fingerprint"]
    weighed = MergeWeights.model_validate_json(artifact(project, 2, "weights.json").read_text())
    alike = np.array(weighed.similarities)
    assert alike[-1, 0] < 1
    np.testing.assert_allclose(weighed.weights, np.exp(alike) / np.exp(alike).sum(axis=1, keepdims=True))


def test_a_second_run_does_nothing_and_all_that_people_read_names_the_merge(project):
    made = {kind: project.artifacts(kind) for kind in ("experts", "moments", "merged", "scores")}
    result = project.run()
    assert [update["reused"] for update in result["updates"]] == [True, True]
    assert {kind: project.artifacts(kind) for kind in made} == made
    assert "moments" in result["updates"][0]["seconds"]
    assert result["methods"].keys() == {"recall"}
    assert result["verdict"].startswith("Over the learning tasks seen RECALL with moments reaches")
    report = (project.folder / "reports" / "report.html").read_text()
    assert "<b>RECALL with moments</b>" in report
    rows = list(csv.DictReader((project.folder / "reports" / "plots" / "weights.csv").open()))
    assert {row["similarity"] == "" for row in rows if row["update"] == "1"} == {True}
    assert {row["similarity"] == "" for row in rows if row["update"] == "2"} == {False}


@pytest.mark.slow
def test_a_machine_without_the_store_goes_on_with_the_moments_of_every_earlier_expert(project, reference):
    shutil.rmtree(project.folder / ".store")
    grown = project.run(*THREE)
    assert [update["reused"] for update in grown["updates"]] == [True, True, False]
    assert weights(3) == reference[2], "as if nothing had happened"
    store = Store(root=project.folder / ".store")
    origins = {store.manifest("moments", name).get("restored_from", "")[-8:] for name in project.artifacts("moments")}
    assert origins == {"/moments", ""}
    assert len(project.artifacts("moments")) == 3


def test_moments_that_are_not_those_that_were_registered_end_the_run_in_a_sentence(project):
    shutil.rmtree(project.folder / ".store")
    flip_a_bit(artifact(project, 1, MOMENTS))
    done = project.recall("run", *THREE, expect=1)
    assert "version 1 of tiny: MLflow holds other files than were registered" in " ".join(done.stderr.split())


def test_every_merge_is_made_again_bit_for_bit_and_so_are_the_moments(project):
    report = audit("--level", "merge")
    assert not by_status(report, "failed")
    assert {link["name"] for link in by_status(report, "unknown")} == {"signature"}
    again = {(link["update"], link["name"].removesuffix(" made again")): link["found"] for link in report["links"]
             if link["name"].endswith("made again")}  # fmt: skip
    whole = ["weights", "moments", "merged model"]
    assert again.keys() == {
        *((1, name) for name in whole),
        *((2, name) for name in ["representations of current", "representations of reviews", *whole]),
    }
    assert set(again.values()) == {"bit-identical"}
    found = {(link["update"], link["name"]): link["found"] for link in report["links"]}
    assert found[1, MOMENTS] == found[2, MOMENTS] == "the same in MLflow and the store"
    page = (project.folder / "reports" / "audits" / "tiny-2" / "audit.html").read_text()
    assert page.count("<rect") == 1 + 7 + 8, "the first update has no representations"
    assert "with moments" in (project.folder / "reports" / "audits" / "tiny-2" / "model_card.md").read_text()


def test_a_tampered_moments_file_is_named(project):
    flip_a_bit(artifact(project, 1, MOMENTS))
    update, name, found = only_fault(audit(expect=1))
    assert (update, name) == (1, MOMENTS)
    assert "in MLflow SHA-256" in found
    faults = {(link["update"], link["name"]) for link in by_status(audit("--level", "merge", expect=1), "failed")}
    assert {(1, MOMENTS), (1, "moments made again")} <= faults
    artifact(project, 1, MOMENTS).unlink()
    faults = {(link["update"], link["name"]): link["found"] for link in by_status(audit(expect=1), "failed")}
    assert faults == {(1, MOMENTS): "MLflow does not have it"}
    faults = {link["found"] for link in by_status(audit("--level", "merge", expect=1), "failed") if link["update"] == 2}
    assert any("MLflow does not have the moments of update 1" in found for found in faults)


def test_a_lineage_that_says_another_merge_than_its_settings_is_found(project):
    file = artifact(project, 2, "lineage.json")
    values = json.loads(file.read_text()) | {"merge": "recall"}
    file.write_text(json.dumps(values, indent=1, sort_keys=True))
    registry.client().set_model_version_tag("tiny", "2", registry.LINEAGE, file_sha256(file))
    registry.client().set_model_version_tag("tiny", "2", "recall.merge", "recall")
    faults = {link["name"]: link["found"] for link in by_status(audit(expect=1), "failed")}
    assert faults["tags of version 2"] == "merge recall (settings: recall_moments)"


def moments_file(path, factor):
    """Of one map with 4 inputs, kept with rank 2."""
    facts = {"shared": {"a.weight": "a.weight"}, "transposed": [], "inputs": {"a.weight": 4}, "tokens": 9}
    tensors = {"a.weight.factor": factor, "a.weight.rest": torch.ones(4)}
    save_tensors(tensors, path, metadata={"moments": json.dumps(facts)})
    return path


def test_low_rank_moments_are_compared_as_the_matrices_that_they_stand_for(tmp_path):
    """Eigenvectors have another sign on another machine, which changes no merge."""
    factor = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    recorded = moments_file(tmp_path / "recorded", factor)
    turned = moments_file(tmp_path / "turned", factor * torch.tensor([-1.0, 1.0]))
    assert moments_difference(turned, recorded).absolute < 1e-6
    other = moments_difference(moments_file(tmp_path / "other", 2 * factor), recorded)
    assert (other.where, other.relative > 0.5) == ("a.weight", True)


def test_the_lineage_says_how_the_merge_was_made_and_by_which_moments(project):
    first, second = (read_lineage(artifact(project, number, "lineage.json").read_text(), "it") for number in (1, 2))
    assert first.merge == second.merge == registry.version("tiny", "2").tags["recall.merge"] == "recall_moments"
    assert second.moments.files["moments.safetensors"].sha256 == file_sha256(artifact(project, 2, MOMENTS))
    assert [entry.moments for entry in first.pool] == [(), ()]
    assert [entry.moments for entry in second.pool] == [(first.moments.fingerprint,), (second.moments.fingerprint,)]
    assert second.settings["update"]["merge"] == "recall_moments", "what level full retrains by"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kept"),
    [("{start_from: base}", "merging.moments_rank=4"), ("{pool: all}", "merging.moments_weighting=response")],
)
def test_where_every_expert_is_merged_the_base_takes_no_part(project, options, kept):
    values = yaml.safe_load(options) | {"merge": "recall_moments"}
    pairs = [f"update.{name}={value}" for name, value in values.items()]
    project.run(*(word for pair in [*pairs, kept] for word in ("--set", pair)))
    lineage = read_lineage(artifact(project, 4, "lineage.json").read_text(), "it")
    assert [entry.name for entry in lineage.pool] == ["names", "reviews"]
    assert [len(entry.moments) for entry in lineage.pool] == [1, 1]
    report = audit("--level", "merge", version=4)
    assert not by_status(report, "failed")


def stream_with(*overrides):
    """The stream of the shipped settings, with others laid over them."""
    settings = load_settings(ROOT / "params.yaml", overrides=list(overrides))
    names = settings.learning_tasks
    base = CheckpointRef(kind="base_model", fingerprint="base", sha256="", path=Path("base"))
    return Stream(settings, Inputs("base", dict(zip(names, names, strict=True)), None, ()), Store(root=Path()), base)


def test_what_the_merge_reads_makes_new_versions_and_of_the_paper_s_merge_none():
    ours = "update.merge=recall_moments"
    plain = stream_with().model_key(1)
    assert stream_with("merging.shrink=0.5", "merging.moments_rank=8").model_key(1) == plain
    found = [
        stream_with(ours),
        stream_with(ours, "merging.shrink=0.5"),
        stream_with(ours, "merging.moments_rank=8"),
        stream_with(ours, "merging.moments_weighting=response"),
        stream_with(ours, "merging.hold=10"),
        stream_with(),
    ]
    assert len({stream.model_key(1) for stream in found}) == 6
    assert stream_with(ours, "merging.density=0.5").key(1) == stream_with(ours).key(1)
    assert MergingSettings().read_by("recall_moments") == {"shrink": 0.9, "moments_rank": None}, "as before the choice"


def test_settings_that_came_later_reach_the_keys_where_they_differ_from_what_all_had_before():
    keys = [stream_with(*change).model_key(1) for change in
            ([], ["sampling.choice=random"], ["sampling.choice=farthest"], ["weighting.similarity=depth"])]  # fmt: skip
    assert len(set(keys)) == 4


def test_streams_older_than_the_setting_keep_their_keys():
    stream = stream_with()
    own = stream.settings
    reads = {"update": {"start_from": "merged", "pool": "current"}, "finetuning": own.finetuning.plain.model_dump()}
    reads |= {name: getattr(own, name).model_dump() for name in ("sampling", "representations", "weighting")}
    task = {"name": "names_en_fr", "dvc_hash": "names_en_fr", "kind": "translation", "metric": "chrf", "labels": None}
    expected = {"base_model": "base", "learning_tasks": [task], "settings": reads}
    assert stream.model_key(1) == digest(expected)


@pytest.mark.slow
def test_moments_that_hold_fine_tuning_are_an_input_of_the_next_expert_come_back_from_mlflow_and_are_audited(
    project, tmp_path
):
    hold = ("--set", "merging.hold=10")
    project.run(*hold)
    store = Store(root=project.folder / ".store")
    first, second = models(project, 3), models(project, 4)
    inputs = [store.manifest("experts", made["expert"]["fingerprint"])["inputs"] for made in (first, second)]
    assert "moments" not in inputs[0], "there is nothing to hold yet"
    assert inputs[1]["moments"] == [first["moments"]["fingerprint"]]
    assert inputs[1]["strength"] == 10
    assert weights(3) == weights(1)
    assert weights(4) != weights(2)
    assert [weights(3), weights(4)] == as_a_baseline(project, tmp_path, *hold)
    assert not by_status(audit("--level", "merge", version=4), "failed")
    card = (project.folder / "reports" / "audits" / "tiny-4" / "model_card.md").read_text()
    assert "held each fine-tuning too (strength 10.0)" in card
    shutil.rmtree(project.folder / ".store")
    grown = project.run(*THREE, *hold)
    assert [update["reused"] for update in grown["updates"]] == [True, True, False]
    third = store.manifest("experts", models(project, 5)["expert"]["fingerprint"])["inputs"]
    assert third["moments"] == [made["moments"]["fingerprint"] for made in (first, second)]


def test_nothing_is_held_where_every_expert_starts_from_the_base():
    with pytest.raises(
        BadInput, match=r"merging\.hold holds what the current model has learned, .* set start_from merged"
    ):
        stream_with("merging.hold=1", "update.start_from=base", "baselines=[recall_moments]")
    stream_with("merging.hold=1", "update.start_from=base")  # nothing reads it


@pytest.mark.slow
def test_a_changed_shrink_makes_new_versions(project):
    result = project.run("--set", "merging.shrink=0.5")
    assert [update["reused"] for update in result["updates"]] == [False, False]
    assert result["version"] == "4"
    assert weights(3) == weights(1), "the first update has nothing to shrink"
    assert weights(4) != weights(2)


def test_the_same_method_twice_is_refused_in_one_sentence(project):
    done = project.recall("run", "--set", "baselines=[recall_moments]", expect=2)
    assert sum(line.startswith("recall: ") for line in done.stderr.splitlines()) == 1
    assert "baselines names recall_moments, which is the update's own method by update.merge" in done.stderr
    with pytest.raises(BadInput, match=r"update\.merge.*recall_moments.*found 'ours'"):
        load_settings(ROOT / "params.yaml", overrides=["update.merge=ours"])


def test_table_verdict_and_report_of_a_result_say_which_merge_it_was():
    result = sample_result()
    first = result.updates[0]
    kept = first.merge.model_copy(update={"weights": [[0.0, 1.0]] * 31, "similarities": [], "sigma": []})
    changed = {
        "settings": result.settings | {"update": {"merge": "recall_moments"}},
        "updates": [first.model_copy(update={"merge": kept}), *result.updates[1:]],
    }
    ours = result.model_copy(update=changed)
    assert verdict(ours) == verdict(result).replace("RECALL", "RECALL with moments")
    page = render(ours)
    assert "Fine-tuning itself was held" not in page
    held = ours.model_copy(update={"settings": ours.settings | {"merging": {"hold": 10.0}}})
    assert "Fine-tuning itself was held (strength 10.0)" in render(held)
    after_one = {"updates": held.updates[:1]}
    assert "itself was held" not in render(held.model_copy(update=after_one)), "there was nothing to hold yet"
    assert page.count("RECALL with moments") > 5
    assert page.count('aria-label="Update 1: reviews"') == 0, "nothing was compared"
    assert page.count('aria-label="Update 2: names_fr"') == 1
