"""A stage as a cached task of real Prefect: hits, damage, a moved store, and results as JSON."""

import importlib
import json
import shutil
from pathlib import Path

import counting_stage
import pytest
from counting_stage import count_up, total
from prefect import flow
from prefect.results import ResultRecord
from prefect.serializers import PickleSerializer
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH

from recall.errors import Failed
from tasks.store import Store


class Attack:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


@pytest.fixture
def store(tmp_path, prefect_harness):
    counting_stage.runs.clear()
    return Store(root=tmp_path / "store")


@flow
def count(store, *numbers):
    return [count_up(store, f"number {number}", number=number) for number in numbers]


def test_the_second_run_comes_from_the_cache(store):
    first, second = count(store, 1), count(store, 1)
    assert first == second
    assert counting_stage.runs == [1]
    assert (first[0].path / "number.txt").read_text() == "1"


def test_another_input_is_another_artifact(store):
    one, two = count(store, 1, 2)
    assert one.path != two.path
    assert counting_stage.runs == [1, 2]


@pytest.mark.parametrize("harm", ["delete the folder", "delete a file", "cut a file short", "change a byte"])
def test_a_cached_result_whose_files_are_gone_or_damaged_is_made_again_with_a_warning(store, harm, capsys):
    (ref,) = count(store, 3)
    if harm == "delete the folder":
        shutil.rmtree(ref.path)
    elif harm == "delete a file":
        (ref.path / "number.txt").unlink()
    else:
        (ref.path / "number.txt").write_text("" if harm == "cut a file short" else "4")
    assert count(store, 3) == [ref]
    assert counting_stage.runs == [3, 3]
    assert (ref.path / "number.txt").read_text() == "3"
    assert "made again" in capsys.readouterr().err


def result_file(ref):
    return Path(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value()) / ref.fingerprint


@pytest.mark.parametrize("harm", [lambda text: "", lambda text: text[:-40], lambda text: text.replace("8", "9")])
def test_a_result_of_prefect_that_is_damaged_is_not_read_and_nothing_is_made_again(store, harm):
    (ref,) = count(store, 8)
    file = result_file(ref)
    file.write_text(harm(file.read_text()))
    assert count(store, 8) == [ref]
    assert counting_stage.runs == [8]
    assert json.loads(json.loads(file.read_text())["result"])["data"]["count"] == 8, "and it was written again"


def test_a_pickle_planted_as_a_result_of_prefect_is_not_loaded(store, tmp_path):
    """A result's file says itself how it is to be loaded; Prefect would follow."""
    (ref,) = count(store, 9)
    file, proof = result_file(ref), tmp_path / "proof"
    record = json.loads(file.read_text())
    record["metadata"]["serializer"] = PickleSerializer().model_dump(mode="json")
    record["result"] = PickleSerializer().dumps(Attack(proof)).decode()
    file.write_text(json.dumps(record))
    assert count(store, 9) == [ref]
    assert not proof.exists()
    ResultRecord.deserialize(json.dumps(record).encode())
    assert proof.exists(), "the plant works: Prefect itself runs it"


def test_a_store_that_was_moved_is_still_a_cache(store, tmp_path):
    (ref,) = count(store, 4)
    moved = Store(root=tmp_path / "moved")
    store.root.rename(moved.root)
    (found,) = count(moved, 4)
    assert counting_stage.runs == [4]
    assert found.path == moved.root / "samples" / ref.fingerprint


def test_an_artifact_that_prefect_does_not_know_is_taken_as_it_is(store, tmp_path):
    (ref,) = count(store, 5)
    copy = Store(root=tmp_path / "copy")
    shutil.copytree(store.root / "samples", copy.root / "samples")
    shutil.rmtree(store.root)
    assert [found.fingerprint for found in count(copy, 5)] == [ref.fingerprint]
    assert counting_stage.runs == [5]


def test_nothing_but_the_artifact_stays_behind(store):
    (ref,) = count(store, 6)
    assert sorted(path.name for path in ref.path.iterdir()) == ["manifest.json", "number.txt"]
    assert not list((store.root / "work").iterdir())


EDITS_ITSELF = """
from pathlib import Path
from tasks.refs import SamplesRef
from tasks.stage import Job, stage

@stage(kind="samples", ref=SamplesRef)
def edited(job: Job, edit: str):
    (job.out / "made.txt").write_text("by whichever code was there")
    if edit == "pull":
        with Path(__file__).open("a") as file:
            file.write("# other code")
    if edit == "removal":
        Path(__file__).unlink()
    return {"count": 1}
"""


@pytest.mark.parametrize("edit", ["pull", "removal"])
def test_what_was_made_while_the_code_changed_is_not_kept(store, tmp_path, monkeypatch, edit):
    """Bodies import `recall` when they run, so a `git pull` meanwhile would be filed under the old code's key."""
    (tmp_path / f"stage_{edit}.py").write_text(EDITS_ITSELF)
    monkeypatch.syspath_prepend(tmp_path)
    stage = importlib.import_module(f"stage_{edit}").edited

    @flow
    def run():
        return stage(store, "one", edit=edit)

    with pytest.raises(Failed, match="the code of the stage edited changed while this run went on"):
        run()
    assert not list((store.root / "samples").iterdir())


def test_what_was_made_from_other_bytes_than_are_there_now_is_made_again(store, monkeypatch, capsys):
    """An input that came from another machine has the same fingerprint, and other bytes."""

    @flow
    def add_up():
        return total(store, "number 10", counted=count_up(store, "number 10", number=10))

    before = add_up()
    shutil.rmtree(store.root / "samples")
    monkeypatch.setattr(counting_stage, "MACHINE", "other")
    after = add_up()
    assert (after.path / "total.txt").read_text() == "other 10"
    assert (after.fingerprint, after.path) == (before.fingerprint, before.path)
    assert after.sha256 != before.sha256
    assert "was made from other files" in " ".join(capsys.readouterr().err.split())


def test_the_manifest_says_what_went_in(store):
    (ref,) = count(store, 7)
    manifest = json.loads((ref.path / "manifest.json").read_text())
    assert manifest["inputs"] == {"number": 7}
    assert manifest["stage"] == "count_up"
    assert manifest["environment"]["threads"] >= 1
    assert manifest["files"]["number.txt"]["size"] == 1
