"""An audit of a real stream: a clean one passes, and whatever was tampered with is found and named."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest
from audited_project import (
    artifact,
    audit,
    by_status,
    flip_a_bit,
    make_writable,
    model_file,
    only_fault,
    run_id,
    tag,
    use,
    with_code,
)
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from prefect.artifacts import Artifact
from project import Project
from typer.testing import CliRunner

from flows.audit import audit as audit_flow
from flows.cli import app
from recall.errors import Failed
from recall.ledger import Entry
from recall.lineage import read_lineage
from tasks import audit_full, ledger, registry
from tasks.refs import file_sha256


@pytest.fixture
def project(audited):
    """The finished project, as it was, with this process in it."""
    return audited


def merge_key(tmp_path, name="key"):
    private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
    curve = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(curve, check=True, capture_output=True)
    export = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(export, check=True, capture_output=True)
    return private, public


def test_a_clean_stream_passes_and_its_models_are_made_again_bit_for_bit(project):
    report = audit("--level", "merge")
    assert not by_status(report, "failed")
    assert {link["name"] for link in by_status(report, "unknown")} == {"signature"}
    again = [link for link in report["links"] if link["name"].endswith("made again")]
    assert len(again) == 2 * 4, "of two updates two representations, the weights and the merged model"
    assert {link["found"] for link in again} == {"bit-identical"}
    assert tag("merge").startswith("passed merge 20")
    names = {link["name"] for link in report["links"]}
    assert {"base model", "data set names", "data set films in Git", "environment lock", "lineage.json"} <= names
    assert {"score of reviews from its rows", "score of the base model on films from its rows"} <= names


def test_without_the_base_in_the_pool_the_first_expert_is_kept_whole_and_the_merges_are_made_again(project):
    project.run("--set", "update.pool=experts", "--set", "baselines=[sequential]")
    lineages = [read_lineage(artifact(project, version, "lineage.json").read_text(), "it") for version in (3, 4)]
    assert [[entry.name for entry in lineage.pool] for lineage in lineages] == [["names"], ["names", "reviews"]]
    made = json.loads(artifact(project, 3, "update.json").read_text())["models"]
    folders = [project.folder / ".store" / ref["kind"] / ref["fingerprint"]
               for ref in (made["recall"]["current"], made["sequential"]["current"])]  # fmt: skip
    alone, kept = (file_sha256(folder / "model.safetensors") for folder in folders)
    assert alone == kept
    report = audit("--level", "merge", version=4)
    again = [link["found"] for link in report["links"] if link["name"].endswith("made again")]
    assert again == ["bit-identical"] * (3 + 4), "the first update has the representations of one model"
    assert not by_status(report, "failed")


def test_the_lineage_names_everything_that_a_model_was_made_from(project):
    text = artifact(project, 2, "lineage.json").read_text()
    lineage = read_lineage(text, "it")
    assert lineage.to_json() == text
    assert lineage.git_commit == project.head() == lineage.code.git_commit
    assert lineage.code.clean
    assert lineage.base_model.dvc_hash == project.dvc_hash("data/base_model")
    assert {"model.safetensors", "config.json"} <= lineage.base_model.files.keys()
    rows = {entry.name: (entry.dvc_hash, entry.rows, entry.trained_on) for entry in lineage.data_sets}
    assert rows["reviews"] == (project.dvc_hash("data/reviews"), {"train": 24, "test": 6}, True)
    assert rows["films"] == (project.dvc_hash("data/films"), {"test": 6}, False)
    assert lineage.previous.version == "1"
    assert lineage.previous.lineage_sha256 == registry.version("tiny", "1").tags["recall.lineage_sha256"]
    assert lineage.seeds == {"finetuning": 0, "sampling": 0}
    assert {"cpu_model", "threads", "torch"} <= lineage.environment.keys()
    merged = lineage.merged.files["model.safetensors"].sha256
    assert registry.version("tiny", "2").tags["recall.weights_sha256"] == merged


def test_a_flipped_bit_in_a_weight_file(project):
    flip_a_bit(model_file(project, 2))
    update, name, found = only_fault(audit(expect=1))
    assert (update, name) == (2, "model/model.safetensors")
    assert "in MLflow SHA-256" in found
    assert tag().startswith("failed at level hashes: update 2, model/model.safetensors: expected SHA-256")


def test_a_flipped_bit_in_the_store(project):
    (fingerprint,) = {registry.version("tiny", "1").tags["recall.expert_fingerprint"]}
    flip_a_bit(project.folder / ".store" / "experts" / fingerprint / "adapter_model.safetensors")
    update, name, found = only_fault(audit(expect=1))
    assert (update, name) == (1, "expert/adapter_model.safetensors")
    assert "in the store SHA-256" in found


def test_a_data_row_changed_in_the_working_copy(project):
    file = project.folder / "data" / "reviews" / "train.jsonl"
    make_writable(file)
    file.write_text(file.read_text().replace("good 3", "bad 3"))
    _, name, found = only_fault(audit(expect=1))
    assert name == "data set reviews"
    assert "train.jsonl (changed)" in found


def test_a_data_row_changed_in_the_dvc_remote(project):
    remote = project.folder / ".dvc-remote"
    (file,) = [path for path in remote.rglob("*") if path.is_file() and b"Review: it is good 200" in path.read_bytes()
               and b"great" in path.read_bytes()]  # fmt: skip
    make_writable(file)
    file.write_bytes(file.read_bytes().replace(b"good 200", b"good 201"))
    _, name, found = only_fault(audit(expect=1))
    assert name == "data set films"
    assert "in the DVC remote test.jsonl" in found


def test_a_metric_edited_in_the_database(project):
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        for table in ("metrics", "latest_metrics"):
            edit = f"update {table} set value = 0.99 where key = 'recall/reviews' and run_uuid = ?"
            assert database.execute(edit, [run_id(2)]).rowcount
    update, name, found = only_fault(audit(expect=1))
    assert (update, name) == (2, "metrics in MLflow's database")
    assert found.startswith("recall/reviews 0.99 (update.json: ")


def test_a_metric_edited_in_the_database_and_in_every_file_that_repeats_it(project):
    """Who edits all copies still has to invent rows that give the number: these are recomputed from the predictions."""
    rows = artifact(project, 2, "scores/films.json")
    values = json.loads(rows.read_text())
    rows.write_text(json.dumps(values | {"row_scores": [1.0] * 6, "score": 1.0}, indent=1))
    faults = {link["name"] for link in by_status(audit(expect=1), "failed")}
    assert faults == {"scores/films.json", "score of films from its rows"}


def test_a_lineage_swapped_for_another_versions(project):
    shutil.copy(artifact(project, 1, "lineage.json"), artifact(project, 2, "lineage.json"))
    faults = by_status(audit(expect=1), "failed")
    assert faults[0]["name"] == "lineage.json"
    assert faults[0]["found"].endswith(", which is that of version 1")


def test_an_earlier_lineage_edited_together_with_its_tag(project):
    """The chain: the next update's lineage names the one before."""
    file = artifact(project, 1, "lineage.json")
    file.write_text(file.read_text().replace('"trained_on": true', '"trained_on": false'))
    registry.client().set_model_version_tag("tiny", "1", "recall.lineage_sha256", _sha256(file))
    faults = by_status(audit(expect=1), "failed")
    assert [(fault["update"], fault["name"]) for fault in faults] == [(1, "lineage.json")]


def test_an_edited_samples_file(project):
    file = artifact(project, 2, "samples.jsonl")
    file.write_text(file.read_text().replace("good", "fine", 1))
    report = audit("--level", "merge", expect=1)
    faults = {link["name"]: link["found"] for link in by_status(report, "failed")}
    assert "in MLflow SHA-256" in faults["samples.jsonl"]
    assert "largest difference" in faults["representations of current made again"]


def test_a_last_bit_of_a_merged_weight_is_no_rounding_on_the_same_machine(project):
    flip_a_bit(model_file(project, 2), place=-2)
    faults = {link["name"]: link["found"] for link in by_status(audit("--level", "merge", expect=1), "failed")}
    assert faults["merged model made again"].endswith("on the same kind of machine")


def test_an_edited_ledger_entry(project):
    moved = {"action": "promote", "who": "ann", "when": "2026-11-24T00:00:00Z", "verdict": None}
    first = Entry(number=1, version="1", previous=None, why="the first", parent="", **moved)
    second = Entry(number=2, version="2", previous="1", why="better", parent=first.digest, **moved)
    for entry in (first, second):
        assert ledger.append("tiny", entry)
        ledger.follow("tiny")
    assert not by_status(audit(), "failed")
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        edit = "update model_version_tags set value = replace(value, 'better', 'bribed') where key = 'recall.entry'"
        assert database.execute(edit).rowcount
    faults = by_status(audit(expect=1), "failed")
    assert {fault["name"] for fault in faults} == {"ledger of promotions"}
    assert "entry 2" in faults[0]["found"]


def test_a_tag_that_names_another_commit(project):
    registry.client().set_model_version_tag("tiny", "2", "recall.git_commit", "0" * 40)
    _, name, found = only_fault(audit(expect=1))
    assert name == "tags of version 2"
    assert "recall.git_commit 000" in found


def test_an_artifact_that_is_gone(project):
    artifact(project, 2, "weights.json").unlink()
    _, name, found = only_fault(audit(expect=1))
    assert (name, found) == ("weights.json", "MLflow does not have it")


def test_a_signed_version_whose_database_and_artifacts_were_both_edited(project, tmp_path, monkeypatch):
    private, public = merge_key(tmp_path)
    monkeypatch.setenv("RECALL_SIGNING_KEY", str(private))
    done = CliRunner().invoke(app, ["sign", "models:/tiny/2", "--json"])
    assert done.exit_code == 0, done.output
    said = {"stream": "tiny", "version": "2", "run_id": run_id(2), "signature": "signature/model.sig"}
    assert json.loads(done.stdout) == said
    assert not by_status(audit("--public-key", str(public)), "unknown")
    file = artifact(project, 2, "lineage.json")
    file.write_text(file.read_text().replace('"cpu_model": "', '"cpu_model": "another '))
    registry.client().set_model_version_tag("tiny", "2", "recall.lineage_sha256", _sha256(file))
    assert not by_status(audit(), "failed"), "both agree, and nothing else repeats it"
    _, name, found = only_fault(audit("--public-key", str(public), expect=1))
    assert name == "signature"
    assert "lineage.json" in found
    assert str(private) not in done.output


def test_a_signature_by_somebody_else_of_another_version_or_none_at_all(project, tmp_path):
    mine, others = merge_key(tmp_path), merge_key(tmp_path, "other")
    sign = ["sign", "models:/tiny/2", "--key", str(others[0])]
    assert "not signed" in only_fault(audit("--public-key", str(mine[1]), expect=1))
    assert CliRunner().invoke(app, sign).exit_code == 0
    assert only_fault(audit("--public-key", str(mine[1]), expect=1))[1] == "signature"


def test_what_was_changed_is_not_signed(project, tmp_path):
    private, _ = merge_key(tmp_path)
    file = artifact(project, 2, "lineage.json")
    file.write_text(file.read_text() + " ")
    done = CliRunner().invoke(app, ["sign", "models:/tiny/2", "--key", str(private)])
    assert done.exit_code == 1
    assert "version 2 of tiny is not signed: update 2, lineage.json" in " ".join(done.stderr.split())


def test_text_of_data_sets_is_escaped_and_the_card_and_the_bom_are_valid(project, tmp_path):
    edit = "<script>alert('x')</script>"
    registry.client().set_model_version_tag("tiny", "2", "recall.learning_task", edit)
    audit("--out", str(tmp_path / "audit"), expect=1)
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 1
    assert page.count("<rect") == 1 + 2 * 7
    card = (tmp_path / "audit" / "model_card.md").read_text()
    assert "<script" not in card
    assert project.dvc_hash("data/reviews") in card
    bom = (tmp_path / "audit" / "ml_bom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom) is None
    component = json.loads(bom)["metadata"]["component"]
    assert component["hashes"][0]["content"] == registry.version("tiny", "2").tags["recall.weights_sha256"]


def test_a_stream_registered_before_audits_is_unknown_where_nothing_was_recorded(project):
    """What the registry of an older release holds: format 1 of the lineage, no scores by row, no tag of the lineage."""
    for version in (1, 2):
        as_registered_before(project, version)
    report = audit("--level", "merge")
    unknown = {link["name"]: link["found"] for link in by_status(report, "unknown")}
    for name in ("lineage.json", "expert", "update.json", "base model", "merge made again", "Git commit of the code"):
        assert unknown[name] == "registered before audits recorded it"
    assert {link["name"] for link in by_status(report, "ok")} >= {"data set reviews", "metrics in MLflow's database"}


def test_another_machine_audits_with_the_registry_and_a_clone(project, tmp_path, monkeypatch):
    """An empty store, and no data but what the DVC remote has."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(project.folder), str(clone)], check=True, capture_output=True)
    Project(clone).dvc("remote", "modify", "--local", "local", "url", str(project.folder / ".dvc-remote"))
    monkeypatch.chdir(clone)
    report = audit("--level", "merge")
    assert not by_status(report, "failed")
    assert {link["name"] for link in by_status(report, "unknown")} == {"signature"}
    found = {link["name"]: link["found"] for link in report["links"]}
    assert found["data set reviews"] == "the same in the DVC remote"
    assert found["samples.jsonl"] == "the same in MLflow"
    assert not (clone / "data" / "reviews").exists(), "nothing is left behind but the report"


@pytest.mark.parametrize(
    ("uri", "words"),
    [("tiny/2", "names no registered version"), ("models:/tiny/9", "is not in the registry"),
     ("models:/tiny@champion", "is not in the registry")],
)  # fmt: skip
def test_a_version_that_is_not_there_is_one_sentence(project, uri, words):
    done = CliRunner().invoke(app, ["audit", uri])
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


def test_a_scheduled_audit_fails_where_a_link_does_not_hold_and_shows_it_in_prefect(project):
    registry.client().set_registered_model_alias("tiny", "champion", "2")
    assert audit_flow()["verdict"].startswith("models:/tiny@champion passed at level hashes")
    artifact(project, 1, "weights.json").write_text("{}")
    with pytest.raises(Failed, match=r"update 1, weights\.json"):
        audit_flow()
    assert "- failed: update 1, weights.json: expected SHA-256" in Artifact.get("audit").data


@pytest.mark.nightly
def test_a_stream_retrained_from_its_data_is_bit_identical(project):
    report = audit("--level", "full")
    assert not by_status(report, "failed")
    again = {(link["update"], link["name"]): link["found"] for link in report["links"] if "retrained" in link["name"]}
    nodes = ("expert retrained", "merged retrained")
    assert again == {(update, node): "bit-identical" for update in (1, 2) for node in nodes}
    assert "PREFECT_HOME" not in os.environ


@pytest.mark.nightly
def test_each_update_is_retrained_by_the_code_of_its_own_commit(new_project, monkeypatch):
    """Between two updates the training changed, and so did the threads: what was registered stays, and can be made."""
    project = with_code(new_project("grown"), learning_tasks=["names"])
    code = project.folder / "recall" / "finetuning.py"
    code.write_text(code.read_text().replace("set_seed(settings.seed)", "set_seed(settings.seed + 1)"))
    project.params(lambda values: values["stream"].update(learning_tasks=["names", "reviews"]))
    project.params(lambda values: values.update(threads=2))
    project.commit("another seed, another learning task")
    project.run()
    use(project.folder, monkeypatch)
    report = audit("--level", "full")
    assert not by_status(report, "failed")
    again = [link for link in report["links"] if link["name"].endswith("retrained")]
    assert {(link["update"], link["found"]) for link in again} == {(1, "bit-identical"), (2, "bit-identical")}


@pytest.mark.nightly
def test_what_this_interpreter_lacks_of_a_recorded_lock_is_installed_into_an_environment_of_its_own(
    new_project, tmp_path, monkeypatch
):
    """Several minutes: all that the lock pins is installed, as PyPI has it."""
    pin = "certifi==2025.1.31"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), pin]
    if subprocess.run(pip, capture_output=True).returncode != 0:
        pytest.skip("PyPI cannot be reached, so no other environment can be made")
    project = with_code(new_project("locked"), learning_tasks=["names"], other_pin=pin)
    use(project.folder, monkeypatch)
    used = []
    interpreter = audit_full.interpreter
    monkeypatch.setattr(audit_full, "interpreter", lambda *given: used.append(interpreter(*given)) or used[-1])
    report = audit("--level", "full", version=1)
    assert not by_status(report, "failed")
    again = [link for link in report["links"] if link["name"].endswith("retrained")]
    assert [link["found"] for link in again] == ["bit-identical"] * 2
    assert [python.parts[-3:] for python in used] == [("venv", "bin", "python")]


def as_registered_before(project, version):
    file = artifact(project, version, "lineage.json")
    new = json.loads(file.read_text())
    old = {name: new[name] for name in ("update_key", "git_commit", "draft_because", "settings", "environment",
                                        "environment_lock_sha256")}  # fmt: skip
    old["base_model"] = {name: new["base_model"][name] for name in ("dvc_hash", "fingerprint")}
    kept = ("name", "path", "dvc_hash", "fingerprint", "rows", "trained_on")
    old["data_sets"] = [{name: entry[name] for name in kept} for entry in new["data_sets"]]
    old |= {name: new[name]["fingerprint"] for name in ("expert", "samples", "weights", "merged")}
    file.write_text(json.dumps(old, indent=1, sort_keys=True))
    registry.client().delete_model_version_tag("tiny", str(version), "recall.lineage_sha256")
    record = artifact(project, version, "update.json")
    values = json.loads(record.read_text())
    record.write_text(
        json.dumps({name: value for name, value in values.items() if name not in ("evaluations", "earlier")})
    )
    shutil.rmtree(artifact(project, version, "scores"))


def _sha256(file):
    from tasks.refs import file_sha256

    return file_sha256(file)
