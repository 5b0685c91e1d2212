"""The artifact store: published whole or not at all, verified, and locked by processes that may die."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recall.errors import BadInput, Failed
from tasks.refs import digest, file_sha256
from tasks.store import MANIFEST, Store, seal


@pytest.fixture
def store(tmp_path):
    return Store(root=tmp_path / "store")


def publish(store, text="weights", fingerprint="f1"):
    with store.lock(fingerprint), store.publishing("merged", fingerprint) as out:
        (out / "sub").mkdir()
        (out / "model.txt").write_text(text)
        (out / "sub" / "more.txt").write_text("more")
        seal(out, {"kind": "merged", "fingerprint": fingerprint})
    return store.folder("merged", fingerprint)


def test_a_published_artifact_is_whole_and_says_what_is_in_it(store):
    folder = publish(store)
    assert store.damage("merged", "f1") is None
    assert store.manifest("merged", "f1")["files"].keys() == {"model.txt", "sub/more.txt"}
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "model.txt", "sub"]


def test_an_artifact_appears_only_once_all_of_it_is_written(store):
    with pytest.raises(ZeroDivisionError), store.publishing("merged", "f1") as out:
        (out / "model.txt").write_text("half")
        assert not store.folder("merged", "f1").exists()
        raise ZeroDivisionError
    assert not list((store.root / "merged").iterdir())


def test_what_a_killed_process_left_half_made_is_removed(store):
    half = store.root / "merged" / ".f1.making"
    half.mkdir(parents=True)
    (half / "model.txt").write_text("half")
    publish(store)
    assert [path.name for path in (store.root / "merged").iterdir()] == ["f1"]


def test_a_damaged_artifact_is_replaced(store):
    publish(store)
    (store.folder("merged", "f1") / "model.txt").unlink()
    publish(store)
    assert store.damage("merged", "f1") is None


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "model.txt").unlink(), "model.txt is missing"),
        (lambda folder: (folder / "model.txt").write_text("longer weights"), "has 14 bytes, not 7"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "missing or no manifest"),
    ],
)
def test_damage_is_found_and_named(store, harm, words):
    harm(publish(store))
    assert words in store.damage("merged", "f1")


def test_a_changed_byte_is_found(store):
    folder = publish(store)
    assert store.damage("merged", "f1") is None
    (folder / "model.txt").write_text("Weights")
    assert "model.txt has changed" in store.damage("merged", "f1")


def test_a_changed_manifest_is_found(store):
    manifest = publish(store) / MANIFEST
    manifest.write_text(manifest.read_text().replace("merged", "merge_"))
    assert "manifest.json is that of another artifact" in store.damage("merged", "f1")
    manifest.write_text(manifest.read_text().replace("merge_", "merged").replace("{", '{"seconds": 1,', 1))
    assert "manifest.json has changed" in store.damage("merged", "f1")


@pytest.mark.parametrize("name", ["../../secret.txt", "/etc/hostname", "link.txt"])
def test_a_manifest_cannot_name_a_file_outside_the_artifact(store, name, tmp_path):
    """Were it followed, a secret's size and hash could be found out by trying."""
    folder = publish(store)
    (tmp_path / "store" / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "store" / "secret.txt")
    for file in folder.rglob("*"):
        if file.name == MANIFEST:
            file.unlink()
    seal(folder, {"kind": "merged", "fingerprint": "f1"})
    manifest = json.loads((folder / MANIFEST).read_text())
    outside = {name: {"size": 6, "sha256": file_sha256(tmp_path / "store" / "secret.txt")}}
    forged = manifest | {"files": outside, "sha256": digest({name: outside[name]["sha256"]})}
    del forged["manifest_sha256"]
    (folder / MANIFEST).write_text(json.dumps(forged))
    assert "is missing" in store.damage("merged", "f1")


def test_the_digest_covers_names_and_bytes_and_nothing_else(store):
    publish(store, fingerprint="f1")
    publish(store, fingerprint="f2")
    publish(store, "other", fingerprint="f3")
    digests = [store.manifest("merged", name)["sha256"] for name in ("f1", "f2", "f3")]
    assert digests[0] == digests[1] != digests[2]


def test_a_lock_dies_with_its_holder(store):
    """A killed process must not block the next run for ever."""
    code = (
        "import sys, time; from pathlib import Path; from tasks.store import Store\n"
        "with Store(root=Path(sys.argv[1])).lock('f1'): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with store.lock("f1"):
        assert publish(store, fingerprint="f2").is_dir()


def test_a_store_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"store .*/file/store cannot be written .* --set store=DIR"):
        Store(root=tmp_path / "file" / "store").check_writable()


def test_a_full_disk_is_said_in_one_sentence_and_leaves_nothing(store):
    with pytest.raises(Failed, match="No space left on device"), store.publishing("merged", "f1") as out:
        (out / "model.txt").write_text("half")
        raise OSError(28, "No space left on device")
    assert not list((store.root / "merged").iterdir())


@pytest.mark.parametrize("folder", ["locks", "work"])
def test_a_full_disk_is_said_in_one_sentence_before_any_artifact_too(store, monkeypatch, folder):
    mkdir = Path.mkdir

    def full(path, *arguments, **options):
        if path.is_relative_to(store.root / folder):
            raise OSError(28, "No space left on device")
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    with (
        pytest.raises(Failed, match=f"{folder} cannot be written to the store .*: No space left on device"),
        store.lock("f1"),
    ):
        store.make_work("f1")


def test_a_failure_under_a_lock_stays_what_it_is_and_frees_it(store):
    with pytest.raises(OSError, match="No space left on device"), store.lock("f1"):
        raise OSError(28, "No space left on device")
    with store.lock("f1"):
        assert publish(store, fingerprint="f2").is_dir()


def test_what_a_killed_stage_left_goes_after_a_week_unless_somebody_works_there(store):
    a_week_ago = time.time() - 8 * 24 * 3600
    for name in ("abandoned", "resumed", "held", "new"):
        (store.make_work(name) / "checkpoint-20").mkdir()
        (store.work(name) / "checkpoint-20" / "model.safetensors").write_text("half")
        for path in (store.work(name), *store.work(name).rglob("*")):
            os.utime(path, (a_week_ago, a_week_ago) if name != "new" else None)
    half_made = store.root / "merged" / ".f1.making"
    half_made.mkdir(parents=True)
    os.utime(half_made, (a_week_ago, a_week_ago))
    (store.work("resumed") / "checkpoint-20" / "model.safetensors").write_text("more")
    with store.lock("held"):
        store.clear_abandoned()
    assert sorted(path.name for path in (store.root / "work").iterdir()) == ["held", "new", "resumed"]
    assert not half_made.exists()
