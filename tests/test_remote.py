"""The store's second tier: pushed whole, believed only after its SHA-256, and as good as having made it."""

import errno
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid

import counting_stage
import fsspec
import pytest
from counting_stage import count_up, total
from dask_cluster import wait_until
from fsspec.implementations.memory import MemoryFileSystem
from prefect import flow
from test_store import publish

from recall.errors import BadInput, Failed
from tasks.remote import anything, bring, check_remote, settle, share
from tasks.store import MANIFEST, Store


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.server)])
def remote(request, tmp_path):
    """The URL of an empty remote of each kind."""
    if request.param == "file":
        return f"file://{tmp_path}/remote"
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/remote"
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def bucket():
    """A bucket on a real S3 server, which is found by the environment alone, as a user's would be."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    environment["AWS_DEFAULT_REGION"] = "us-east-1"
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)

    def answers():
        try:
            return urllib.request.urlopen(url).status == 200
        except urllib.error.URLError:
            return False

    try:
        wait_until(answers, "the S3 server answers", 60)
        fsspec.filesystem("s3").mkdir("recall-test")
        yield "s3://recall-test"
    finally:
        process.terminate()
        process.wait(timeout=30)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def store_at(folder, remote):
    return Store(root=folder, remote=remote)


def files(remote):
    """Path below the remote to content."""
    fs, root = fsspec.url_to_fs(remote)
    fs.invalidate_cache()
    return {path.partition(root)[2].lstrip("/"): fs.cat_file(path) for path in fs.find(root)}


@pytest.fixture
def pushed(tmp_path, remote):
    """A store whose one artifact is at the remote."""
    store = store_at(tmp_path / "here", remote)
    publish(store)
    share(store, "merged", "f1")
    return store


def test_another_store_fetches_what_was_pushed(pushed, remote, tmp_path):
    other = store_at(tmp_path / "there", remote)
    assert bring(other, "merged", "f1") is None
    assert other.damage("merged", "f1") is None
    assert other.manifest("merged", "f1") == pushed.manifest("merged", "f1")


def test_what_is_neither_here_nor_there_is_missing(tmp_path, remote):
    assert "missing" in bring(store_at(tmp_path / "here", remote), "merged", "f1")


def test_an_artifact_is_seen_only_once_its_manifest_is_there(pushed, remote, tmp_path):
    fs, root = fsspec.url_to_fs(remote)
    fs.rm_file(f"{root}/merged/f1/{MANIFEST}")
    assert "missing" in bring(store_at(tmp_path / "there", remote), "merged", "f1")
    share(pushed, "merged", "f1")
    assert bring(store_at(tmp_path / "there", remote), "merged", "f1") is None


def test_a_changed_file_is_not_believed_and_gives_way_to_what_is_made_again(pushed, remote, tmp_path, capsys):
    fs, root = fsspec.url_to_fs(remote)
    content = pushed.manifest("merged", "f1")["sha256"]
    fs.pipe_file(f"{root}/merged/f1/{content}/model.txt", b"Weights")
    other = store_at(tmp_path / "there", remote)
    assert "missing" in bring(other, "merged", "f1")
    assert "not what was pushed" in capsys.readouterr().err
    assert not list((other.root / "merged").iterdir())
    publish(other)
    share(other, "merged", "f1")
    assert bring(store_at(tmp_path / "third", remote), "merged", "f1") is None


@pytest.mark.parametrize("harm", ["reaches outside", "is of another artifact", "is no JSON", "is a list"])
def test_a_manifest_that_is_not_of_this_artifact_is_no_manifest(pushed, remote, tmp_path, harm):
    fs, root = fsspec.url_to_fs(remote)
    manifest = pushed.manifest("merged", "f1")
    if harm == "reaches outside":
        manifest["files"]["../../escaped.txt"] = manifest["files"].pop("model.txt")
        fs.pipe_file(f"{root}/merged/f1/{manifest['sha256']}/../../escaped.txt", b"weights")
    text = {"is no JSON": "{", "is a list": "[]"}.get(harm, json.dumps(manifest))
    name = "f2" if harm == "is of another artifact" else "f1"
    fs.makedirs(f"{root}/merged/{name}", exist_ok=True)
    fs.pipe_file(f"{root}/merged/{name}/{MANIFEST}", text.encode())
    assert "missing" in bring(store_at(tmp_path / "there", remote), "merged", name)
    assert not list((tmp_path / "there").rglob("escaped.txt"))


@pytest.mark.parametrize("sealed", [True, False])
def test_a_manifest_with_one_changed_number_is_not_believed(pushed, remote, tmp_path, capsys, sealed):
    """Its files all have their SHA-256; a score is a field of the manifest, and goes from there to the report."""
    fs, root = fsspec.url_to_fs(remote)
    manifest = pushed.manifest("merged", "f1") | {"fields": {"score": 0.91}}
    if not sealed:
        del manifest["manifest_sha256"]
    fs.pipe_file(f"{root}/merged/f1/{MANIFEST}", json.dumps(manifest).encode())
    other = store_at(tmp_path / "there", remote)
    assert "missing" in bring(other, "merged", "f1")
    assert "not what was pushed" in capsys.readouterr().err
    share(pushed, "merged", "f1")
    assert bring(other, "merged", "f1") is None
    assert other.manifest("merged", "f1") == pushed.manifest("merged", "f1")


def test_who_made_other_bytes_of_the_same_inputs_takes_those_that_were_there_first(tmp_path, remote, capsys):
    """On another processor sums differ."""
    one, two = store_at(tmp_path / "one", remote), store_at(tmp_path / "two", remote)
    publish(one, "weights")
    settle(one, "merged", "f1", anything)
    publish(two, "weiGhts")
    with two.lock("f1"):
        settle(two, "merged", "f1", anything)
    assert "another machine was first" in capsys.readouterr().err
    assert two.damage("merged", "f1") is None
    assert (two.folder("merged", "f1") / "model.txt").read_text() == "weights"
    assert len([name for name in files(remote) if name.endswith("model.txt")]) == 1


def test_what_was_used_already_is_neither_given_up_nor_pushed_over_anothers(tmp_path, remote):
    one, two = store_at(tmp_path / "one", remote), store_at(tmp_path / "two", remote)
    publish(one, "weights")
    share(one, "merged", "f1")
    publish(two, "weiGhts")
    before = files(remote)
    share(two, "merged", "f1")
    assert files(remote) == before
    assert (two.folder("merged", "f1") / "model.txt").read_text() == "weiGhts"


@flow
def add_up(store, number):
    return total(store, f"number {number}", counted=count_up(store, f"number {number}", number=number))


def test_two_machines_bytes_are_never_mixed(tmp_path, remote, prefect_harness, monkeypatch):
    """The first machine's second stage and the other's first lie at the remote; a third makes its own second."""
    number = uuid.uuid4().int % 10**9
    one = add_up(Store(root=tmp_path / "one"), number)
    monkeypatch.setattr(counting_stage, "MACHINE", "other")
    other = store_at(tmp_path / "other", remote)
    count(other, number)
    share(store_at(tmp_path / "one", remote), one.kind, one.fingerprint)
    assert len([name for name in files(remote) if name.endswith(MANIFEST)]) == 2
    third = add_up(store_at(tmp_path / "third", remote), number)
    assert (third.path / "total.txt").read_text() == f"other {number}"
    assert files(remote)[f"totals/{one.fingerprint}/{third.sha256}/total.txt"].decode() == f"other {number}"
    assert add_up(store_at(tmp_path / "fourth", remote), number).sha256 == third.sha256


@flow
def count(store, number):
    return count_up(store, f"number {number}", number=number)


def test_a_stage_takes_what_another_machine_made(tmp_path, remote, prefect_harness):
    """Prefect knows nothing of it, so neither its database nor its results have to come along."""
    counting_stage.runs.clear()
    number = uuid.uuid4().int % 10**9
    made = count(store_at(tmp_path / "here", remote), number)
    found = count(store_at(tmp_path / "there", remote), number)
    assert counting_stage.runs == [number]
    assert found.fingerprint == made.fingerprint
    assert found.path.is_relative_to(tmp_path / "there")


def test_what_could_not_be_pushed_is_pushed_by_the_next_run(tmp_path, remote, prefect_harness):
    number = uuid.uuid4().int % 10**9
    count(Store(root=tmp_path / "here"), number)
    assert not files(remote)
    count(store_at(tmp_path / "here", remote), number)
    assert sorted(name.rpartition("/")[2] for name in files(remote)) == [MANIFEST, "number.txt"]


def test_a_remote_that_cannot_be_used_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    remote = f"file://{tmp_path}/file/remote"
    with pytest.raises(BadInput, match=r"store_remote file://.*/file/remote cannot be used .*; set store_remote"):
        check_remote(remote)
    store = store_at(tmp_path / "here", remote)
    publish(store)
    with pytest.raises(Failed, match="cannot be used"):
        share(store, "merged", "f1")


def test_a_remote_that_can_be_used_is_left_as_it_was(remote):
    check_remote(remote)
    assert not files(remote)


class Broken(MemoryFileSystem):
    """As s3fs has it, an error that it does not know is EIO."""

    protocol = "broken"

    def get_file(self, *_, **__):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EIO, "store_remote broken://.* cannot be used .*Input/output error"),
        (errno.ENOSPC, "merged cannot be written to the store .*there: No space left on device"),
    ],
)
def test_a_failed_download_names_whose_fault_it_is(tmp_path, monkeypatch, number, words):
    fsspec.register_implementation("broken", Broken, clobber=True)
    monkeypatch.setattr(Broken, "number", number, raising=False)
    remote = f"broken://{uuid.uuid4().hex}/remote"
    store = store_at(tmp_path / "here", remote)
    publish(store)
    share(store, "merged", "f1")
    with pytest.raises(Failed, match=words):
        bring(store_at(tmp_path / "there", remote), "merged", "f1")
