"""Promotion, rollback and status on a real stream: MLflow's registry, Prefect's flow and the command underneath."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from promotion_fixture import FAIL, PASS, moved, overrides, promoted, recall, status, tags, where

from flows.moves import roll_back
from flows.preflight import check_inputs
from flows.stream_state import open_stream
from recall.errors import BadInput, Failed
from recall.gates import Verdict
from recall.load_settings import load_settings
from tasks import ledger, registry


def newest_flow_run():
    with get_client(sync_client=True) as prefect:
        return prefect.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def test_a_pass_moves_champion_and_previous_and_writes_down_every_number(fresh_registry):
    assert where() == (None, None)
    first = promoted("1", why="the first")
    assert where() == ("1", None)
    second = promoted()
    assert (second["version"], where()) == ("3", ("3", "1"))
    one, two = ledger.read_ledger("tiny")
    assert (one.number, one.action, one.version, one.previous, one.who, one.why) == (
        1, "promote", "1", None, "ann", "the first",
    )  # fmt: skip
    assert (two.version, two.previous, two.parent) == ("3", "1", one.digest)
    assert [gate.name for gate in one.verdict.gates] == ["average", "unseen"]
    assert [gate.name for gate in two.verdict.gates] == ["average", "forgetting", "forgetting", "unseen"]
    assert one.verdict.gates[-1].compared_with == "the base model"
    assert two.verdict.gates[-1].compared_with == "the champion, version 1"
    assert [gate.rows for gate in two.verdict.gates] == [18, 6, 6, 12]
    assert first["entry"]["verdict"] == one.verdict.model_dump(mode="json")
    assert Verdict.model_validate_json(tags("3")["recall.verdict"]) == two.verdict
    assert tags("3")["recall.promotion"].startswith("promoted 20")
    assert tags("3")["recall.ledger_head"] == two.digest
    assert fresh_registry.get_registered_model("tiny").tags["recall.ledger_head"] == two.digest
    assert ledger.faults("tiny") == []


def test_the_gates_see_the_scores_that_the_run_reported(fresh_registry, registered):
    result = json.loads((registered.folder / "reports" / "result.json").read_text())
    (_, first, second, last) = result["methods"]["recall"]["scores"]
    verdict = Verdict.model_validate(promoted()["verdict"])
    average, *forgetting, unseen = verdict.gates
    assert average.by_learning_task == pytest.approx(dict(zip(["names", "reviews", "countries"], last, strict=False)))
    lost = {gate.learning_tasks[0]: gate.estimate for gate in forgetting}
    assert lost == pytest.approx({"names": max(first[0], second[0]) - last[0], "reviews": second[1] - last[1]})
    base = result["methods"]["recall"]["scores"][0]
    assert unseen.by_learning_task == pytest.approx({"films": last[3] - base[3], "spanish": last[4] - base[4]})


def test_a_failed_gate_leaves_the_aliases_and_says_why(fresh_registry):
    promoted("1")
    found = promoted("3", overrides=FAIL)
    assert where() == ("1", None)
    assert (found["champion"], found["entry"], found["verdict"]["outcome"]) == ("1", None, "fail")
    assert "version 3 of tiny was not promoted, version 1 stays champion: the average" in found["said"]
    assert tags("3")["recall.promotion"].startswith("refused 20")
    assert Verdict.model_validate_json(tags("3")["recall.verdict"]).gates[0].threshold == 1
    assert len(ledger.read_ledger("tiny")) == 1
    run = newest_flow_run()
    assert (run.state.name, run.state.message) == ("Completed", found["said"])
    assert "| average | names, reviews, countries |" in Artifact.get("promotion").data


def test_a_verdict_that_chance_may_have_made_does_not_promote(fresh_registry):
    bounds = promoted("3", overrides=[*PASS, "promotion.minimum_average=1"])["verdict"]["gates"][0]
    level = bounds["estimate"]
    assert bounds["low"] < level
    found = promoted("3", overrides=[*PASS, f"promotion.minimum_average={level}"])
    assert found["verdict"]["outcome"] == "borderline"
    assert where() == (None, None)
    asked = promoted("3", overrides=[*PASS, f"promotion.minimum_average={level}", "promotion.approval=true"])
    assert "to have somebody approve it, run the deployment" in asked["said"]
    assert where() == (None, None)


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        ("recall.draft", "true", "it is a draft"),
        ("recall.audit", "failed: weights of names were altered", "its audit failed: weights of names were altered"),
    ],
)
def test_a_draft_or_a_failed_audit_is_never_promoted(fresh_registry, tag, value, words):
    fresh_registry.set_model_version_tag("tiny", "3", tag, value)
    assert words in promoted("3")["said"]
    assert where() == (None, None)


def test_a_passed_audit_is_no_hindrance(fresh_registry):
    fresh_registry.set_model_version_tag("tiny", "3", "recall.audit", "passed hashes 2026-11-24")
    assert promoted("3")["champion"] == "3"


def test_what_is_champion_already_is_said_and_makes_no_entry(fresh_registry):
    promoted("2")
    again = promoted("2")
    assert again["said"] == "version 2 of tiny is the champion already; nothing was changed"
    assert len(ledger.read_ledger("tiny")) == 1


def test_rollback_goes_one_champion_further_back_each_time(fresh_registry):
    moved("1", "2", "3")
    moves = [(roll_back("tiny", "bad answers", "bob").said, where()) for _ in range(2)]
    assert [after for _, after in moves] == [("2", "1"), ("1", None)]
    assert moves[0][0] == "version 2 of tiny is the champion again, instead of 3; ledger entry 4"
    with pytest.raises(Failed, match="no champion of tiny to go back to: version 1 is the first"):
        roll_back("tiny", "", "bob")
    last = ledger.read_ledger("tiny")[-1]
    assert (last.number, last.action, last.version, last.previous, last.who, last.why) == (
        5, "rollback", "1", "2", "bob", "bad answers",
    )  # fmt: skip
    assert ledger.faults("tiny") == []
    assert promoted("3")["previous"] == "1"


def test_rollback_to_a_version_whose_audit_failed_since_is_refused(fresh_registry):
    moved("1", "2")
    fresh_registry.set_model_version_tag("tiny", "1", "recall.audit", "failed: lineage.json is another version's")
    with pytest.raises(Failed, match="version 1 of tiny may not be champion again: its audit failed"):
        roll_back("tiny", "", "bob")
    assert where() == ("2", "1")


def test_there_is_no_such_version(fresh_registry):
    with pytest.raises(BadInput, match="no version 9 to promote; it has 1, 2, 3"):
        promoted("9")


def test_what_was_registered_before_scores_were_logged_is_said(fresh_registry, registered, monkeypatch):
    record = registry.client().get_model_version("tiny", "3")
    run = fresh_registry.create_run(fresh_registry.get_experiment_by_name("tiny").experiment_id)
    text = json.loads(Path(fresh_registry.download_artifacts(record.tags["recall.run_id"], "update.json")).read_text())
    del text["evaluations"], text["earlier"]
    fresh_registry.log_text(run.info.run_id, json.dumps(text), "update.json")
    fresh_registry.set_model_version_tag("tiny", "3", "recall.run_id", run.info.run_id)
    with pytest.raises(Failed, match="recall run --recompute"):
        promoted("3")


def test_the_command_exits_with_0_for_promoted_and_1_for_refused(fresh_registry):
    refused = recall("promote", *overrides(FAIL))
    assert refused.exit_code == 1
    assert "version 3 of tiny was not promoted, there is still no champion" in refused.output
    done = recall("promote", "--why", "a try", "--json", *overrides(PASS))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["entry"]["why"] == "a try"
    assert recall("promote", "--version", "9").exit_code == 2
    assert recall("rollback").exit_code == 1
    for command in ("promote", "rollback", "status"):
        assert "Usage" in recall(command, "--help").output


def test_status_says_that_the_ledger_is_empty(fresh_registry):
    assert "no champion yet ledger: no entry yet" in " ".join(recall("status").output.split())


def test_status_shows_versions_aliases_verdicts_audits_and_the_ledger(fresh_registry):
    promoted("1", why="the first")
    promoted("3", overrides=FAIL)
    fresh_registry.set_model_version_tag("tiny", "1", "recall.audit", "passed hashes 2026-11-24")
    found = status()
    assert (found["champion"], found["previous"], found["not_taken_in"]) == ("1", None, [])
    assert [row["aliases"] for row in found["versions"]] == [["champion"], [], ["challenger"]]
    assert [row["learning_task"] for row in found["versions"]] == ["names", "reviews", "countries"]
    assert found["versions"][0]["audit"] == "passed hashes 2026-11-24"
    assert found["versions"][2]["promotion"].startswith("refused")
    assert json.loads(found["versions"][2]["verdict"])["outcome"] == "fail"
    assert [entry["why"] for entry in found["ledger"]] == ["the first"]
    shown = " ".join(recall("status").output.split())
    assert "3 of 3 learning tasks have a version, drafts and earlier data counted; `recall run` makes" in shown
    assert "champion: version 1" in shown
    assert "ledger: 1 entry, the chain holds" in shown


def test_status_of_a_stream_without_versions(fresh_registry):
    done = recall("status", "--set", "stream.name=other")
    assert done.exit_code == 0
    assert "other has no version yet" in done.output


def test_no_gate_changes_what_an_update_is(fresh_registry):
    settings = load_settings(Path("params.yaml"))
    inputs = check_inputs(settings, [])
    other = load_settings(Path("params.yaml"), overrides=[*FAIL, "promotion.confidence=0.8", "promotion.approval=true"])
    one, two = open_stream(settings, inputs), open_stream(other, inputs)
    assert [one.key(position) for position in (1, 2, 3)] == [two.key(position) for position in (1, 2, 3)]
    assert one.model_key(3) == two.model_key(3)


def test_another_machine_goes_on_with_the_registry_alone(fresh_registry, registered, tmp_path, monkeypatch):
    """No store, no data: the settings and MLflow are enough to judge and to move."""
    promoted("1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(registered.folder / "params.yaml", elsewhere)
    monkeypatch.chdir(elsewhere)
    assert promoted("3")["champion"] == "3"
    assert isinstance(fresh_registry, MlflowClient)
