"""A stage as a cached task of real Prefect: hits, damage, a moved store, and results as JSON."""

import json
import shutil

import counting_stage
import pytest
from counting_stage import count_up
from prefect import flow

from tasks.store import Store


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


@pytest.mark.parametrize("harm", ["delete the folder", "delete a file", "cut a file short"])
def test_a_cached_result_whose_files_are_gone_or_damaged_is_made_again_with_a_warning(store, harm, capsys):
    (ref,) = count(store, 3)
    if harm == "delete the folder":
        shutil.rmtree(ref.path)
    elif harm == "delete a file":
        (ref.path / "number.txt").unlink()
    else:
        (ref.path / "number.txt").write_text("")
    assert count(store, 3) == [ref]
    assert counting_stage.runs == [3, 3]
    assert (ref.path / "number.txt").read_text() == "3"
    assert "made again" in capsys.readouterr().err


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
