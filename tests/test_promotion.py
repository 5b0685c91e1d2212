"""Promotion, rollback and status on a real stream: MLflow's registry, Prefect's flow and the command underneath."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.flow_runs import resume_flow_run
from typer.testing import CliRunner

from flows.cli import app
from flows.moves import new_entry, roll_back
from flows.preflight import check_inputs
from flows.promote import promote
from flows.stream_state import open_stream
from recall.errors import BadInput, Failed
from recall.gates import Verdict
from recall.ledger import standing
from recall.load_settings import load_settings
from tasks import ledger, registration, registry
from tasks.restore import restore
from tasks.run_files import read_record, read_run_lineage
from tasks.store import Store

HERE = Path(__file__).parent
PASS = ["promotion.minimum_average=0", "promotion.maximum_forgetting=1", "promotion.unseen_margin=1"]
FAIL = ["promotion.minimum_average=1"]


@pytest.fixture(scope="module")
def finished(new_project):
    """A project whose stream has three versions; only read."""
    project = new_project("promotion")
    project.params(lambda values: values.update(baselines=[]) or values["finetuning"].update(epochs=1))
    project.commit("without baselines")
    project.run()
    return project


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """The project with a registry of this test's own; returns MLflow's client."""
    database = tmp_path / "mlflow.db"
    shutil.copy(finished.folder / "mlflow.db", database)
    monkeypatch.chdir(finished.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    registry.client.cache_clear()
    yield registry.client()
    registry.client.cache_clear()


def promoted(version=None, overrides=PASS, **more):
    return promote(version=version, overrides=overrides, who="ann", **more)


def moved(*versions):
    """Promotions as the ledger has them, without a flow and its verdicts, which take longer."""
    for version in versions:
        assert ledger.append("tiny", new_entry(ledger.read_ledger("tiny"), "promote", version, "ann", "", None))
        ledger.follow("tiny")


def where():
    found = registry.aliases("tiny")
    return found.get("champion"), found.get("previous")


def tags(version):
    return registry.version("tiny", version).tags


def recall(*arguments):
    return CliRunner().invoke(app, list(arguments))


def overrides(values):
    return [word for value in values for word in ("--set", value)]


def status():
    return json.loads(recall("status", "--json").output)


def newest_flow_run():
    with get_client(sync_client=True) as prefect:
        return prefect.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def test_a_pass_moves_champion_and_previous_and_writes_down_every_number(project):
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
    assert project.get_registered_model("tiny").tags["recall.ledger_head"] == two.digest
    assert ledger.faults("tiny") == []


def test_the_gates_see_the_scores_that_the_run_reported(project, finished):
    result = json.loads((finished.folder / "reports" / "result.json").read_text())
    (_, first, second, last) = result["methods"]["recall"]["scores"]
    verdict = Verdict.model_validate(promoted()["verdict"])
    average, *forgetting, unseen = verdict.gates
    assert average.by_learning_task == pytest.approx(dict(zip(["names", "reviews", "countries"], last, strict=False)))
    lost = {gate.learning_tasks[0]: gate.estimate for gate in forgetting}
    assert lost == pytest.approx({"names": max(first[0], second[0]) - last[0], "reviews": second[1] - last[1]})
    base = result["methods"]["recall"]["scores"][0]
    assert unseen.by_learning_task == pytest.approx({"films": last[3] - base[3], "spanish": last[4] - base[4]})


def test_a_failed_gate_leaves_the_aliases_and_says_why(project):
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


def test_a_verdict_that_chance_may_have_made_does_not_promote(project):
    bounds = promoted("3", overrides=[*PASS, "promotion.minimum_average=1"])["verdict"]["gates"][0]
    level = bounds["estimate"]
    assert bounds["low"] < level
    found = promoted("3", overrides=[*PASS, f"promotion.minimum_average={level}"])
    assert found["verdict"]["outcome"] == "borderline"
    assert where() == (None, None)
    asked = promoted("3", overrides=[*PASS, f"promotion.minimum_average={level}", "promotion.approval=true"])
    assert "to have somebody approve it, run the deployment" in asked["said"]
    assert where() == (None, None)


class Deployed:
    """A run of a deployment, whose processes are started as a worker starts them."""

    def __init__(self, finished, options):
        self.project, self.prefect = finished, get_client(sync_client=True)
        with self.prefect:
            flow_id = self.prefect.create_flow(promote)
            deployment = self.prefect.create_deployment(flow_id, "promote", entrypoint="flows.promote.promote")
            parameters = {"overrides": options, "who": "timer"}
            self.run = self.prefect.create_flow_run_from_deployment(deployment, parameters=parameters)

    def execute(self):
        """One process, which ends where the run is suspended or done; returns the run's state."""
        self.project.environment["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"]
        environment = self.project.environment | {"PREFECT__FLOW_RUN_ID": str(self.run.id)}
        command = [sys.executable, "-m", "prefect.engine"]
        done = subprocess.run(command, cwd=self.project.folder, env=environment, capture_output=True, text=True)
        with get_client(sync_client=True) as prefect:
            state = prefect.read_flow_run(self.run.id).state
        assert state.name in ("Suspended", "Completed"), done.stderr
        return state

    def answer(self, approve):
        resume_flow_run(self.run.id, run_input={"approve": approve, "by": "eve", "reason": "read the answers"})


def bounds(version):
    """Of the average gate."""
    gate = promoted(version, overrides=[*PASS, "promotion.minimum_average=1"])["verdict"]["gates"][0]
    return gate["low"], gate["high"]


@pytest.mark.nightly
@pytest.mark.parametrize(("approve", "champion"), [(True, "3"), (False, None)])
def test_a_deployed_run_waits_for_a_persons_word(project, finished, approve, champion):
    """As a worker runs it: the first process ends suspended; after the answer a second one goes on."""
    run = Deployed(finished, [*PASS, f"promotion.minimum_average={sum(bounds('3')) / 2}", "promotion.approval=true"])
    assert run.execute().name == "Suspended"
    assert tags("3")["recall.promotion"].startswith("waits for approval since 20")
    assert where() == (None, None)
    run.answer(approve)
    state = run.execute()
    assert state.name == "Completed"
    assert where() == (champion, None)
    if approve:
        (entry,) = ledger.read_ledger("tiny")
        assert (entry.who, entry.verdict.outcome) == ("timer", "borderline")
        assert "approved by eve: read the answers" in entry.why
    else:
        assert "not approved by eve: read the answers" in state.message


@pytest.mark.nightly
@pytest.mark.parametrize("change", ["a newer version", "another champion"])
def test_an_answer_is_taken_for_nothing_but_what_was_asked(project, finished, change):
    """Whatever changed between question and answer is judged again, and asked about again."""
    lows, highs = zip(bounds("2"), bounds("3"), strict=True)
    level = (max(lows) + min(highs)) / 2
    assert max(lows) < level <= min(highs), "borderline for both"
    if change == "a newer version":
        project.set_registered_model_alias("tiny", "challenger", "2")
    run = Deployed(finished, [*PASS, f"promotion.minimum_average={level}", "promotion.approval=true"])
    assert run.execute().name == "Suspended"
    if change == "a newer version":
        project.set_registered_model_alias("tiny", "challenger", "3")
    else:
        moved("1")
    before = where()
    run.answer(True)
    assert run.execute().name == "Suspended"
    assert where() == before
    run.answer(True)
    assert run.execute().name == "Completed"
    assert where() == ("3", before[0])


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        ("recall.draft", "true", "it is a draft"),
        ("recall.audit", "failed: weights of names were altered", "its audit failed: weights of names were altered"),
    ],
)
def test_a_draft_or_a_failed_audit_is_never_promoted(project, tag, value, words):
    project.set_model_version_tag("tiny", "3", tag, value)
    assert words in promoted("3")["said"]
    assert where() == (None, None)


def test_a_passed_audit_is_no_hindrance(project):
    project.set_model_version_tag("tiny", "3", "recall.audit", "passed hashes 2026-11-24")
    assert promoted("3")["champion"] == "3"


def test_what_is_champion_already_is_said_and_makes_no_entry(project):
    promoted("2")
    again = promoted("2")
    assert again["said"] == "version 2 of tiny is the champion already; nothing was changed"
    assert len(ledger.read_ledger("tiny")) == 1


def test_rollback_goes_one_champion_further_back_each_time(project):
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


def test_rollback_to_a_version_whose_audit_failed_since_is_refused(project):
    moved("1", "2")
    project.set_model_version_tag("tiny", "1", "recall.audit", "failed: lineage.json is another version's")
    with pytest.raises(Failed, match="version 1 of tiny may not be champion again: its audit failed"):
        roll_back("tiny", "", "bob")
    assert where() == ("2", "1")


def test_there_is_no_such_version(project):
    with pytest.raises(BadInput, match="no version 9 to promote; it has 1, 2, 3"):
        promoted("9")


def test_who_wrote_second_sees_it_and_changes_nothing(project):
    """Both judged against the same ledger; the other's entry came in between."""
    moved("1")
    seen = ledger.read_ledger("tiny")
    ours = new_entry(seen, "promote", "3", "ann", "", None)
    assert ledger.append("tiny", new_entry(seen, "promote", "2", "bob", "", None))
    assert not ledger.append("tiny", ours)
    assert not ledger.append("tiny", ours), "a retry changes nothing"
    assert ledger.follow("tiny") == ("2", "1") == where()
    assert [entry.version for entry in ledger.read_ledger("tiny")] == ["1", "2"]
    lost = project.get_model_version("tiny.ledger", "3")
    assert lost.tags["recall.effect"].startswith("none")
    assert ledger.faults("tiny") == []


def test_the_flow_that_was_overtaken_says_by_whom(project, monkeypatch):
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
def test_processes_that_move_at_once_never_leave_two_champions_or_none(project, tmp_path):
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
    tried = len(project.search_model_versions("name = 'tiny.ledger'"))
    assert tried == 1 + 2 * count


@pytest.mark.nightly
def test_killed_between_the_entry_and_the_alias_the_next_command_repairs_it(project, finished, tmp_path):
    moved("1")
    finished.environment["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"]
    finished.python(HERE / "kill_at.py", "alias", "promote", *overrides(PASS), expect=-signal.SIGKILL)
    assert where() == ("1", None), "still the old champion, not none"
    now = status()
    assert now["champion"] == "3"
    assert "alias champion is at version 1, and by the ledger at version 3" in now["differences"]
    assert now["faults"] == []
    done = promoted("3")
    assert done["said"] == "version 3 of tiny is the champion already; nothing was changed"
    assert where() == ("3", "1")
    assert status()["differences"] == []


def test_aliases_set_by_hand_are_shown_as_differing_and_set_back(project):
    moved("1")
    project.set_registered_model_alias("tiny", "champion", "2")
    shown = recall("status").output
    assert "alias champion is at version 2, and by the ledger at version 1" in " ".join(shown.split())
    assert promoted("3", overrides=FAIL)["champion"] == "1"
    assert where() == ("1", None)


def edit(database, statement, *values):
    with sqlite3.connect(database) as connection:
        assert connection.execute(statement, values).rowcount == 1


ENTRY_TAG = "update model_version_tags set value = ? where name = 'tiny.ledger' and version = ? and key = ?"


@pytest.mark.parametrize("number", [1, 2])
def test_an_entry_edited_in_the_database_is_found_and_nothing_moves(project, tmp_path, number):
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


def test_a_deleted_entry_is_found(project):
    moved("1", "2", "3")
    project.delete_model_version("tiny.ledger", "2")
    assert {"entry 2 is missing", "version 2 of tiny.ledger was deleted"} <= set(ledger.faults("tiny"))


def test_a_deleted_newest_entry_is_found_by_the_heads(project):
    moved("1", "2")
    project.delete_model_version("tiny.ledger", "2")
    assert [fault.split(" names ")[0] for fault in ledger.faults("tiny")] == [
        "registered model tiny", "version 2 of tiny",
    ]  # fmt: skip


def test_a_champion_that_was_deleted_does_not_block_the_next(project):
    moved("1", "2")
    project.delete_model_version("tiny", "2")
    found = promoted("3")
    assert found["verdict"]["gates"][-1]["compared_with"] == "the base model"
    assert where() == ("3", None)


def test_what_was_registered_before_scores_were_logged_is_said(project, finished, monkeypatch):
    record = registry.client().get_model_version("tiny", "3")
    run = project.create_run(project.get_experiment_by_name("tiny").experiment_id)
    text = json.loads(Path(project.download_artifacts(record.tags["recall.run_id"], "update.json")).read_text())
    del text["evaluations"], text["earlier"]
    project.log_text(run.info.run_id, json.dumps(text), "update.json")
    project.set_model_version_tag("tiny", "3", "recall.run_id", run.info.run_id)
    with pytest.raises(Failed, match="recall run --recompute"):
        promoted("3")


def test_the_command_exits_with_0_for_promoted_and_1_for_refused(project):
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


def test_status_shows_versions_aliases_verdicts_audits_and_the_ledger(project):
    promoted("1", why="the first")
    promoted("3", overrides=FAIL)
    project.set_model_version_tag("tiny", "1", "recall.audit", "passed hashes 2026-11-24")
    found = status()
    assert (found["champion"], found["previous"], found["not_taken_in"]) == ("1", None, [])
    assert [row["aliases"] for row in found["versions"]] == [["champion"], [], ["challenger"]]
    assert [row["learning_task"] for row in found["versions"]] == ["names", "reviews", "countries"]
    assert found["versions"][0]["audit"] == "passed hashes 2026-11-24"
    assert found["versions"][2]["promotion"].startswith("refused")
    assert json.loads(found["versions"][2]["verdict"])["outcome"] == "fail"
    assert [entry["why"] for entry in found["ledger"]] == ["the first"]
    shown = " ".join(recall("status").output.split())
    assert "3 of 3 learning tasks taken in" in shown
    assert "champion: version 1" in shown
    assert "ledger: 1 entry, the chain holds" in shown


def test_status_of_a_stream_without_versions(project):
    done = recall("status", "--set", "stream.name=other")
    assert done.exit_code == 0
    assert "other has no version yet" in done.output


def test_no_gate_changes_what_an_update_is(project):
    settings = load_settings(Path("params.yaml"))
    inputs = check_inputs(settings, [])
    other = load_settings(Path("params.yaml"), overrides=[*FAIL, "promotion.confidence=0.8", "promotion.approval=true"])
    one, two = open_stream(settings, inputs), open_stream(other, inputs)
    assert [one.key(position) for position in (1, 2, 3)] == [two.key(position) for position in (1, 2, 3)]
    assert one.model_key(3) == two.model_key(3)


def test_another_machine_goes_on_with_the_registry_alone(project, finished, tmp_path, monkeypatch):
    """No store, no data: the settings and MLflow are enough to judge and to move."""
    promoted("1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(finished.folder / "params.yaml", elsewhere)
    monkeypatch.chdir(elsewhere)
    assert promoted("3")["champion"] == "3"
    assert isinstance(project, MlflowClient)


class Again:
    """An update's record and lineage, to be registered once more as another run would."""

    def __init__(self, finished, version, **changes):
        run = tags(version)["recall.run_id"]
        self.store = Store(root=finished.folder / ".store")
        self.record = read_record("tiny", run).model_copy(update=changes)
        self.lineage = read_run_lineage("tiny", run)
        self.parent = registry.start_stream_run("tiny", "another")

    def register(self, **tags):
        return registration.register_update(self.store, "tiny", self.parent, self.record, self.lineage, tags)

    @property
    def run(self):
        experiment = registry.client().get_experiment_by_name("tiny").experiment_id
        (found,) = registry.client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{self.parent}'")
        return found


def test_a_draft_leaves_a_version_that_is_none_as_it_is(project, finished, capsys):
    """The same model, found again by a try with other baselines and an uncommitted params.yaml."""
    moved("3")
    before = tags("3")
    draft = Again(finished, "3", key="another", draft=True)
    assert draft.register(**{"recall.draft": "true", "recall.draft_because": "uncommitted"}).version == "3"
    assert tags("3") == before
    assert not registry.is_draft("tiny", "3")
    assert draft.run.info.status == "FINISHED"
    assert draft.run.data.metrics
    assert f"this run is a draft, and what it found is in MLflow's run {draft.run.info.run_id} alone" in " ".join(
        capsys.readouterr().err.split()
    )
    clean = Again(finished, "3", key="another", draft=False)
    assert clean.register(**{"recall.draft": "false"}).version == "3"
    assert tags("3")["recall.run_id"] == clean.run.info.run_id


def test_a_version_that_nobody_finished_may_become_a_draft(project, finished):
    project.delete_model_version_tag("tiny", "3", registry.KEY)
    Again(finished, "3", draft=True).register(**{"recall.draft": "true"})
    assert tags("3")["recall.draft"] == "true"


def test_metrics_are_whole_after_a_kill_between_two_batches(project, finished, monkeypatch):
    original = project.get_run(tags("3")["recall.run_id"])
    again = Again(finished, "3", key="another")
    monkeypatch.setattr(registration, "BATCH", 7)
    log_batch, batches = MlflowClient.log_batch, []

    def dying(self, run_id, **logged):
        batches.append(logged)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return log_batch(self, run_id, **logged)

    monkeypatch.setattr(MlflowClient, "log_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        again.register()
    assert 0 < len(again.run.data.metrics) < len(original.data.metrics)
    again.register()
    assert again.run.data.metrics == original.data.metrics
    assert again.run.data.params == original.data.params
    for name in ("training/loss", "weight/current"):
        steps = [[(point.step, point.value) for point in project.get_metric_history(run.info.run_id, name)]
                 for run in (again.run, original)]  # fmt: skip
        assert sorted(steps[0]) == sorted(steps[1])


@pytest.fixture
def foreign(project):
    """A version that somebody registered by hand, or whose run was killed before its first tag."""
    return str(project.create_model_version("tiny", registry.version("tiny", "3").source).version)


def test_a_version_of_somebody_elses_is_refused_in_words(foreign):
    found = promoted(foreign)
    assert f"version {foreign} of tiny was not promoted" in found["said"]
    assert "nothing says what it was made from" in found["said"]
    assert (found["verdict"]["outcome"], found["verdict"]["gates"], where()) == ("fail", [], (None, None))
    with pytest.raises(Failed, match=f"version {foreign} of tiny is none that `recall run` has registered"):
        registry.run_of(registry.version("tiny", foreign))
    assert recall("report", "--version", foreign).exit_code == 1
    assert [row["learning_task"] for row in status()["versions"]] == ["names", "reviews", "countries", None]


def test_the_challenger_is_never_a_version_of_somebody_elses(foreign, finished):
    Again(finished, "2").register()
    assert registry.aliases("tiny")["challenger"] == "3"


@pytest.mark.parametrize(
    ("setting", "compared"), [("max_new_tokens", False), ("max_tokens", False), ("batch_size", True)]
)
def test_a_champion_scored_by_other_settings_is_not_compared(project, finished, setting, compared):
    """One that generated shorter answers lost points for that, not for what it knows."""
    original = tags("1")["recall.run_id"]
    lineage = read_run_lineage("tiny", original).model_dump(mode="json")
    lineage["settings"]["evaluation"][setting] += 1
    run = project.create_run(project.get_experiment_by_name("tiny").experiment_id).info.run_id
    project.log_artifacts(run, project.download_artifacts(original, ""))
    project.log_text(run, json.dumps(lineage), "lineage.json")
    project.set_model_version_tag("tiny", "1", registry.RUN, run)
    moved("1")
    unseen = Verdict.model_validate(promoted("3")["verdict"]).gates[-1]
    assert unseen.compared_with == "the champion, version 1"
    if compared:
        assert (unseen.outcome, unseen.rows) == ("pass", 12)
    else:
        assert (unseen.outcome, unseen.rows) == ("borderline", 0)
        assert "by the same metric and settings, of films, spanish" in unseen.note


def test_a_restore_that_fails_leaves_nothing_behind(project, finished, tmp_path):
    record = registry.find_update("tiny", tags("3")[registry.KEY])
    store, merged = Store(root=tmp_path / "store"), record.models["recall"].current
    with pytest.raises(Failed, match="MLflow holds other files than were registered"):
        restore(store, "tiny", record, merged.model_copy(update={"sha256": "0"}))
    assert not list((store.root / "work").iterdir())
    restore(store, "tiny", record, merged)
    assert store.manifest("merged", merged.fingerprint)["sha256"] == merged.sha256
    assert not list((store.root / "work").iterdir())
