"""Champions that move at once, are edited, deleted or set by hand: the ledger tells, and repairs."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from promotion_fixture import FAIL, PASS, moved, overrides, promoted, recall, status, tags, where

from flows.moves import new_entry
from recall.errors import Failed
from recall.ledger import standing
from tasks import ledger

HERE = Path(__file__).parent


def test_who_wrote_second_sees_it_and_changes_nothing(fresh_registry):
    """Both judged against the same ledger; the other's entry came in between."""
    moved("1")
    seen = ledger.read_ledger("tiny")
    ours = new_entry(seen, "promote", "3", "ann", "", None)
    assert ledger.append("tiny", new_entry(seen, "promote", "2", "bob", "", None))
    assert not ledger.append("tiny", ours)
    assert not ledger.append("tiny", ours), "a retry changes nothing"
    assert ledger.follow("tiny") == ("2", "1") == where()
    assert [entry.version for entry in ledger.read_ledger("tiny")] == ["1", "2"]
    lost = fresh_registry.get_model_version("tiny.ledger", "3")
    assert lost.tags["recall.effect"].startswith("none")
    assert ledger.faults("tiny") == []


def test_the_flow_that_was_overtaken_says_by_whom(fresh_registry, monkeypatch):
    from flows import promote as module

    judge = module.judge_version

    def overtaken(*arguments):
        verdict = judge(*arguments)
        ledger.append("tiny", new_entry(ledger.read_ledger("tiny"), "promote", "2", "bob", "", None))
        return verdict

    monkeypatch.setattr(module, "judge_version", overtaken)
    found = promoted("3")
    assert "bob came first (promote to version 2, ledger entry 1)" in found["said"]
    assert where() == ("2", None)
    assert tags("3")["recall.promotion"].startswith("refused")


@pytest.mark.nightly
def test_processes_that_move_at_once_never_leave_two_champions_or_none(fresh_registry, tmp_path):
    moved("1")
    start, count = tmp_path / "start", 6
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "move_often.py", "tiny", who, str(count), start],
            env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for who in ("ann", "bob")
    ]  # fmt: skip
    deadline = time.monotonic() + 90
    while not all(Path(f"{start}.{who}").exists() for who in ("ann", "bob")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    start.touch()
    champions = set()
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        champions.add(where()[0])
    won = []
    for process in processes:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        won.append(int(out))
    entries = ledger.read_ledger("tiny")
    assert None not in champions
    assert len(entries) == 1 + sum(won)
    assert ledger.faults("tiny") == []
    assert where() == standing(entries)
    tried = len(fresh_registry.search_model_versions("name = 'tiny.ledger'"))
    assert tried == 1 + 2 * count


@pytest.mark.nightly
def test_killed_between_the_entry_and_the_alias_the_next_command_repairs_it(fresh_registry, registered, tmp_path):
    moved("1")
    registered.environment["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"]
    registered.python(HERE / "kill_at.py", "alias", "promote", *overrides(PASS), expect=-signal.SIGKILL)
    assert where() == ("1", None), "still the old champion, not none"
    now = status()
    assert now["champion"] == "3"
    assert "alias champion is at version 1, and by the ledger at version 3" in now["differences"]
    assert now["faults"] == []
    done = promoted("3")
    assert done["said"] == "version 3 of tiny is the champion already; nothing was changed"
    assert where() == ("3", "1")
    assert status()["differences"] == []


def test_aliases_set_by_hand_are_shown_as_differing_and_set_back(fresh_registry):
    moved("1")
    fresh_registry.set_registered_model_alias("tiny", "champion", "2")
    shown = recall("status").output
    assert "alias champion is at version 2, and by the ledger at version 1" in " ".join(shown.split())
    assert promoted("3", overrides=FAIL)["champion"] == "1"
    assert where() == ("1", None)


def edit(database, statement, *values):
    with sqlite3.connect(database) as connection:
        assert connection.execute(statement, values).rowcount == 1


ENTRY_TAG = "update model_version_tags set value = ? where name = 'tiny.ledger' and version = ? and key = ?"


@pytest.mark.parametrize("number", [1, 2])
def test_an_entry_edited_in_the_database_is_found_and_nothing_moves(fresh_registry, tmp_path, number):
    moved("1", "2")
    entry = ledger.read_ledger("tiny")[number - 1]
    forged = entry.model_copy(update={"who": "somebody else"})
    edit(tmp_path / "mlflow.db", ENTRY_TAG, forged.to_json(), number, "recall.entry")
    assert any(f"entry {number} " in fault and "was altered" in fault for fault in ledger.faults("tiny"))
    edit(tmp_path / "mlflow.db", ENTRY_TAG, forged.digest, number, "recall.entry_sha256")
    assert ledger.faults("tiny"), "the digest beside it was forged too"
    with pytest.raises(Failed, match="the ledger of tiny does not hold, so nothing is moved"):
        promoted("3")
    assert where() == ("2", "1")
    assert status()["faults"] == ledger.faults("tiny")


def test_a_deleted_entry_is_found(fresh_registry):
    moved("1", "2", "3")
    fresh_registry.delete_model_version("tiny.ledger", "2")
    assert {"entry 2 is missing", "version 2 of tiny.ledger was deleted"} <= set(ledger.faults("tiny"))


def test_a_deleted_newest_entry_is_found_by_the_heads(fresh_registry):
    moved("1", "2")
    fresh_registry.delete_model_version("tiny.ledger", "2")
    assert [fault.split(" names ")[0] for fault in ledger.faults("tiny")] == [
        "registered model tiny", "version 2 of tiny",
    ]  # fmt: skip


def test_a_champion_that_was_deleted_does_not_block_the_next(fresh_registry):
    moved("1", "2")
    fresh_registry.delete_model_version("tiny", "2")
    found = promoted("3")
    assert found["verdict"]["gates"][-1]["compared_with"] == "the base model"
    assert where() == ("3", None)
