"""What an audit says of what it cannot look at, of what breaks a check, and of an earlier verdict."""

import functools
import http.server
import json
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from audited_project import artifact, audit, by_status, make_writable, model_file, run_id, tag
from moto.server import ThreadedMotoServer

from flows import audit_levels
from flows.audit import audit as audit_flow
from recall.audit_verdicts import AuditReport, Link
from tasks import registry
from tasks.audit_full import _groups, check_update
from tasks.audit_marks import mark
from tasks.audit_merge import MACHINE, other_machine
from tasks.audit_source import read_chain
from tasks.promote import refusals
from tasks.refs import file_sha256

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def project(audited):
    return audited


@pytest.fixture
def clone(project, tmp_path, monkeypatch):
    """A fresh clone, whose data has to come from a remote that DVC alone can reach; yields the remote's folder."""
    folder, remote = tmp_path / "clone", project.folder / ".dvc-remote"
    _git(tmp_path, "clone", "--quiet", str(project.folder), str(folder))
    handler = functools.partial(Quiet, directory=str(remote))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = f"['remote \"local\"']\n    url = http://127.0.0.1:{server.server_port}\n"
        (folder / ".dvc" / "config.local").write_text(settings)
        monkeypatch.chdir(folder)
        yield remote
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_data_of_a_remote_that_dvc_alone_reaches_is_checked(clone):
    report = audit()
    assert links(report)["data set names"]["found"] == "the same as DVC brings it from its remote"
    (file,) = [path for path in clone.rglob("*") if path.is_file() and b"Review: it is good 200" in path.read_bytes()
               and b"great" in path.read_bytes()]  # fmt: skip
    make_writable(file)
    file.write_bytes(file.read_bytes().replace(b"good 200", b"good 201"))
    shutil.rmtree(".dvc/cache", ignore_errors=True)
    fault = links(audit(expect=1))["data set films"]
    assert fault["status"] == "failed"
    assert "as DVC brings it has hash" in fault["found"]


def test_data_that_cannot_be_brought_is_unknown_and_the_audit_incomplete(clone):
    Path(".dvc/config.local").write_text(f"['remote \"local\"']\n    url = {NOWHERE}\n")
    report = audit(expect=1)
    assert not by_status(report, "failed")
    assert links(report)["data set names"]["status"] == "unknown"
    assert tag().startswith("incomplete at level hashes: update 1, ")
    assert not refusals("tiny", "2"), "it says nothing against the version"


def test_data_whose_folder_is_gone_from_todays_checkout_is_asked_for_at_its_commit(clone):
    shutil.rmtree("data")
    report = audit()
    assert not by_status(report, "failed")
    assert links(report)["data set names in Git"]["status"] == "ok"


def test_a_tampered_file_that_a_check_stumbles_over_fails_that_link_alone(project):
    file = artifact(project, 2, "samples.jsonl")
    file.write_text(file.read_text().replace('"prompt"', '"question"'))
    np.savez(artifact(project, 1, "representations/0/representations.npy").with_suffix(""), np.zeros(2))
    archive = artifact(project, 1, "representations/0/representations.npz")
    archive.rename(archive.with_suffix(".npy"))
    report = audit("--level", "merge", expect=1)
    broken = {
        link["update"]: link["found"] for link in by_status(report, "failed") if link["name"] == "merge made again"
    }
    assert broken[2] == "KeyError: 'prompt'"
    assert set(broken) == {1, 2}
    assert tag("merge").startswith("failed at level merge: update 1")
    assert Path("reports/audits/tiny-2/audit.html").exists()


def test_a_weaker_audit_does_not_clear_what_a_deeper_one_found(project):
    file = artifact(project, 2, "samples.jsonl")
    sound = file.read_text()
    file.write_text(sound.replace("good", "fine", 1))
    audit("--level", "merge", expect=1)
    file.write_text(sound)
    audit()
    assert tag().startswith("passed hashes")
    (refusal,) = refusals("tiny", "2")
    assert refusal.startswith("its audit failed at level merge: update 2, samples.jsonl")
    audit("--level", "merge")
    assert not refusals("tiny", "2")
    assert tag() == tag("merge")


@pytest.mark.parametrize(("level", "cleared"), [("hashes", False), ("merge", False), ("full", True)])
def test_only_the_deepest_level_clears_the_tag_of_an_older_release(project, level, cleared):
    registry.client().set_model_version_tag("tiny", "2", "recall.audit", "failed: update 2, weights.json")
    mark(report_of(level, "ok"))
    assert bool(refusals("tiny", "2")) is not cleared


def test_an_incomplete_audit_clears_nothing(project):
    mark(report_of("hashes", "failed"))
    mark(report_of("hashes", "unknown", out_of_reach=True))
    assert tag().startswith("failed")


@pytest.mark.parametrize(
    ("table", "column", "names"),
    [("logged_models", "artifact_location", {"files in MLflow"}),
     ("runs", "artifact_uri", {"lineage.json of version 2"})],
)  # fmt: skip
def test_an_outage_is_no_fault(project, monkeypatch, table, column, names):
    """S3 is down: nothing that lies there is failed, and neither is the version."""
    move_to_s3(project, monkeypatch, table, column, NOWHERE)
    report = audit(expect=1)
    assert not by_status(report, "failed")
    assert {link["name"] for link in report["links"] if link["out_of_reach"]} == names
    assert tag().startswith("incomplete")
    assert Path("reports/audits/tiny-2/audit.html").exists()


def test_files_on_s3_are_brought_update_by_update(project, monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        upload(project, monkeypatch, f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        here = []

        def seen(update, store):
            here.append([str(path) for path in update.registered.parent.parent.rglob("model.safetensors")])
            return check(update, store)

        check = audit_levels.check_files
        monkeypatch.setattr(audit_levels, "check_files", seen)
        report = audit("--level", "merge")
    finally:
        server.stop()
    assert not by_status(report, "failed")
    assert [len(models) for models in here] == [1, 1], "one version's model at a time"
    assert links(report)["model/model.safetensors"]["found"] == "the same in MLflow and the store"


def test_a_shallow_clone_cannot_tell_whether_a_commit_exists(project, tmp_path, monkeypatch):
    middle, shallow = tmp_path / "middle", tmp_path / "shallow"
    _git(tmp_path, "clone", "--quiet", str(project.folder), str(middle))
    _git(middle, "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "--quiet", "--allow-empty", "-m", "x")
    _git(tmp_path, "clone", "--quiet", "--depth", "1", middle.as_uri(), str(shallow))
    (shallow / ".dvc" / "config.local").write_text(f"['remote \"local\"']\n    url = {project.folder}/.dvc-remote\n")
    monkeypatch.chdir(shallow)
    report = audit(expect=1)
    assert not by_status(report, "failed")
    for name in ("Git commit of the project", "Git commit of the code"):
        assert links(report)[name]["out_of_reach"]
        assert "git fetch --unshallow" in links(report)[name]["found"]


def test_a_version_that_somebody_registered_by_hand_fails_in_a_sentence(project):
    client = registry.client()
    number = client.create_model_version("tiny", source=registry.version("tiny", "2").source).version
    report = audit(version=number, expect=1)
    (fault,) = by_status(report, "failed")
    assert "was not registered by `recall run`" in fault["found"]
    assert tag(version=number).startswith("failed at level hashes: lineage.json of version 3")
    assert Path("reports/audits/tiny-3/audit.html").exists()


def test_a_tag_that_names_another_run(project):
    for named in ("0" * 32, run_id(2)):
        registry.client().set_model_version_tag("tiny", "1", registry.RUN, named)
        assert [link["name"] for link in by_status(audit(expect=1), "failed")] == ["tags of version 1"]


def test_a_missing_tag_of_the_lineage_is_no_old_release(project):
    registry.client().delete_model_version_tag("tiny", "2", registry.LINEAGE)
    faults = {link["name"]: link["found"] for link in by_status(audit(expect=1), "failed")}
    assert faults["lineage.json"] == "nothing, and a lineage of format 2 always has it"


def test_a_scheduled_audit_before_the_first_champion_completes(project):
    assert audit_flow()["verdict"].startswith("tiny has no champion yet")


def test_what_is_retrained_otherwise_is_a_fault_only_on_the_same_machine_and_from_the_same_start(project, tmp_path):
    (first, second), _ = read_chain("tiny", "2")
    made = retrained(project, second, tmp_path)
    assert [link.found for link in check_update(second, made, None, tmp_path)] == ["bit-identical"] * 2
    shutil.rmtree(model_file(project, 2).parent)
    assert [link.status for link in check_update(second, made, None, tmp_path)] == ["ok", "ok"], "the lineage names it"
    content = (made["merged"] / "model.safetensors").read_bytes()
    (made["merged"] / "model.safetensors").write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    _, merged = check_update(second, made, None, tmp_path)
    assert merged.status == "failed"
    assert merged.found.endswith("on the same kind of machine")
    _, merged = check_update(second, made, "it starts from update 1, which came out otherwise", tmp_path)
    assert (merged.status, merged.found.rpartition("; ")[2]) == (
        "unknown", "it starts from update 1, which came out otherwise",
    )  # fmt: skip
    elsewhere = second.lineage.merged.model_copy(update={"machine": second.lineage.merged.machine | {"cpu": "another"}})
    other = type(second)(**vars(second) | {"lineage": second.lineage.model_copy(update={"merged": elsewhere})})
    _, merged = check_update(other, made, None, tmp_path)
    assert merged.status == "unknown"
    assert "another machine trains otherwise (cpu " in merged.found
    assert {link.status for link in check_update(first, {}, None, tmp_path)} == {"failed"}, "one link each, no crash"


def test_each_commit_retrains_its_own_updates(project):
    (first, second), _ = read_chain("tiny", "2")
    assert _groups([first, second]) == [[first, second]]
    later = type(second)(**vars(second) | {"lineage": second.lineage.model_copy(update={"git_commit": "0" * 40})})
    assert _groups([first, later]) == [[first], [later]]


def report_of(level, status, out_of_reach=False):
    link = Link(update=1, node="merged", name="x", status=status, expected="a", found="b", out_of_reach=out_of_reach)
    return AuditReport(model_uri="models:/tiny/2", stream="tiny", version="2", level=level, time="2026-11-24T00:00:00",
                       seconds=0, updates=[], links=[link])  # fmt: skip


def retrained(project, update, tmp_path):
    """The update's expert and merged model, as another store made them."""
    made = {}
    for node, entry in (("expert", update.lineage.expert), ("merged", update.lineage.merged)):
        made[node] = tmp_path / node
        shutil.copytree(project.folder / ".store" / entry.kind / entry.fingerprint, made[node])
    return made


def links(report):
    """By name, of the newest update that has it."""
    return {link["name"]: link for link in report["links"]}


def move_to_s3(project, monkeypatch, table, column, endpoint):
    """MLflow's database says that the artifacts lie in a bucket, which `endpoint` serves."""
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (keys | {"MLFLOW_S3_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    place = (project.folder / "mlartifacts").as_uri()
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        edit = f"update {table} set {column} = replace({column}, ?, 's3://mlflow')"
        assert database.execute(edit, [place]).rowcount


def upload(project, monkeypatch, endpoint):
    import boto3

    for table, column in (("runs", "artifact_uri"), ("logged_models", "artifact_location")):
        move_to_s3(project, monkeypatch, table, column, endpoint)
    s3 = boto3.client("s3", endpoint_url=endpoint)
    s3.create_bucket(Bucket="mlflow")
    root = project.folder / "mlartifacts"
    for file in root.rglob("*"):
        if file.is_file():
            s3.upload_file(str(file), "mlflow", file.relative_to(root).as_posix())


def _git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def test_lineages_older_than_the_setting_are_those_of_the_paper_s_merge(project):
    """As an earlier release wrote them: nothing of moments, and no word on how the merge was made."""
    sha256 = None
    for number in (1, 2):
        file = artifact(project, number, "lineage.json")
        values = json.loads(file.read_text())
        assert (values.pop("merge"), values.pop("moments")) == ("recall", None)
        assert [entry.pop("moments") for entry in values["pool"]] == [[], []]
        if values["previous"]:
            values["previous"]["lineage_sha256"] = sha256
        file.write_text(json.dumps(values, indent=1, sort_keys=True))
        sha256 = file_sha256(file)
        registry.client().set_model_version_tag("tiny", str(number), registry.LINEAGE, sha256)
        registry.client().delete_model_version_tag("tiny", str(number), "recall.merge")
    report = audit("--level", "merge")
    assert not by_status(report, "failed")
    assert {link["name"] for link in by_status(report, "unknown")} == {"signature"}


HERE = dict.fromkeys(MACHINE, "same")


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        (HERE, None),
        (HERE | {"dtype": "float32"}, "dtype same, not float32"),
        (HERE | {"cpu": "AVX2", "threads": 1}, "cpu same, not AVX2; threads same, not 1"),
        ({name: value for name, value in HERE.items() if name != "dtype"}, None),
        (None, "the machine was not recorded"),
    ],
)
def test_a_machine_is_another_where_what_decides_the_bits_differs(recorded, said):
    """But for the type that it calculates in where that was not recorded yet."""
    assert other_machine(recorded, HERE) == said
