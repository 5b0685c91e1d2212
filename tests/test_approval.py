"""A borderline verdict is put before a person: a deployed run suspends, and goes on with the answer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.flow_runs import resume_flow_run
from promotion_fixture import PASS, moved, promoted, tags, where

from flows.promote import promote
from tasks import ledger

HERE = Path(__file__).parent


def newest_flow_run():
    with get_client(sync_client=True) as prefect:
        return prefect.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


class Deployed:
    """A run of a deployment, whose processes are started as a worker starts them."""

    def __init__(self, registered, options):
        self.project, self.prefect = registered, get_client(sync_client=True)
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
def test_a_deployed_run_waits_for_a_persons_word(fresh_registry, registered, approve, champion):
    """As a worker runs it: the first process ends suspended; after the answer a second one goes on."""
    run = Deployed(registered, [*PASS, f"promotion.minimum_average={sum(bounds('3')) / 2}", "promotion.approval=true"])
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
def test_an_answer_is_taken_for_nothing_but_what_was_asked(fresh_registry, registered, change):
    """Whatever changed between question and answer is judged again, and asked about again."""
    lows, highs = zip(bounds("2"), bounds("3"), strict=True)
    level = (max(lows) + min(highs)) / 2
    assert max(lows) < level <= min(highs), "borderline for both"
    if change == "a newer version":
        fresh_registry.set_registered_model_alias("tiny", "challenger", "2")
    run = Deployed(registered, [*PASS, f"promotion.minimum_average={level}", "promotion.approval=true"])
    assert run.execute().name == "Suspended"
    if change == "a newer version":
        fresh_registry.set_registered_model_alias("tiny", "challenger", "3")
    else:
        moved("1")
    before = where()
    run.answer(True)
    assert run.execute().name == "Suspended"
    assert where() == before
    run.answer(True)
    assert run.execute().name == "Completed"
    assert where() == ("3", before[0])
