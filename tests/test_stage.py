"""A stage as a cached task of real Prefect: hits, damage, a moved store, and results as JSON."""

import json
import shutil
from pathlib import Path

import counting_stage
import pytest
from counting_stage import count_up
from prefect import flow
from prefect.results import ResultRecord
from prefect.serializers import PickleSerializer
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH

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


def test_the_manifest_says_what_went_in(store):
    (ref,) = count(store, 7)
    manifest = json.loads((ref.path / "manifest.json").read_text())
    assert manifest["inputs"] == {"number": 7}
    assert manifest["stage"] == "count_up"
    assert manifest["environment"]["threads"] >= 1
    assert manifest["files"]["number.txt"]["size"] == 1
