"""Registering again: drafts, kills, versions of somebody else's, and what a version's scores are compared with."""

import json

import pytest
from audited_project import model_file
from mlflow import MlflowClient
from promotion_fixture import moved, promoted, recall, status, tags, where

from recall.errors import Failed
from recall.gates import Verdict
from tasks import registration, registry
from tasks.refs import file_sha256
from tasks.restore import restore
from tasks.run_files import read_record, read_run_lineage
from tasks.store import Store


class Again:
    """An update's record and lineage, to be registered once more as another run would."""

    def __init__(self, registered, version, **changes):
        run = tags(version)["recall.run_id"]
        self.store = Store(root=registered.folder / ".store")
        self.record = read_record("tiny", run).model_copy(update=changes)
        self.lineage = read_run_lineage("tiny", run)
        self.parent = registry.start_stream_run("tiny", "another")

    def register(self, **tags):
        return registration.register_update(self.store, "tiny", self.parent, self.record, self.lineage, tags)

    def use_weights_of(self, version):
        """As if the same update had come to another version's merged model."""
        other = read_record("tiny", tags(version)["recall.run_id"]).models["recall"].current
        models = self.record.models["recall"].model_copy(update={"current": other})
        self.record = self.record.model_copy(update={"models": {"recall": models}})

    @property
    def runs(self):
        experiment = registry.client().get_experiment_by_name("tiny").experiment_id
        found = registry.client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{self.parent}'")
        return sorted(found, key=lambda run: run.info.start_time)

    @property
    def run(self):
        (found,) = self.runs
        return found


def test_a_draft_leaves_a_version_that_is_none_as_it_is(fresh_registry, registered, capsys):
    """The same model, found again by a try with other baselines and an uncommitted params.yaml."""
    moved("3")
    before = tags("3")
    draft = Again(registered, "3", key="another", draft=True)
    assert draft.register(**{"recall.draft": "true", "recall.draft_because": "uncommitted"}).version == "3"
    assert tags("3") == before
    assert draft.run.info.status == "FINISHED"
    assert draft.run.data.metrics
    assert f"this run is a draft, and what it found is in MLflow's run {draft.run.info.run_id} alone" in " ".join(
        capsys.readouterr().err.split()
    )
    clean = Again(registered, "3", key="another", draft=False)
    assert clean.register(**{"recall.draft": "false"}).version == "3"
    assert tags("3")["recall.run_id"] == clean.run.info.run_id


def test_a_version_that_nobody_finished_may_become_a_draft(fresh_registry, registered):
    fresh_registry.delete_model_version_tag("tiny", "3", registry.KEY)
    Again(registered, "3", draft=True).register(**{"recall.draft": "true"})
    assert tags("3")["recall.draft"] == "true"


def test_metrics_are_whole_after_a_kill_between_two_batches(fresh_registry, registered, monkeypatch):
    original = fresh_registry.get_run(tags("3")["recall.run_id"])
    again = Again(registered, "3", key="another")
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
        steps = [[(point.step, point.value) for point in fresh_registry.get_metric_history(run.info.run_id, name)]
                 for run in (again.run, original)]  # fmt: skip
        assert sorted(steps[0]) == sorted(steps[1])


@pytest.fixture
def killed(fresh_registry, registered, monkeypatch):
    """A registration that was killed once its model was logged, and before there was a version of it."""
    again = Again(registered, "3", key="another", model_key="another")
    with monkeypatch.context() as until_then:
        until_then.setattr("mlflow.register_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again.register()
    return again


def interrupted(*_, **__):
    raise KeyboardInterrupt


def logged_by(again):
    """Where the models are that a stream run's updates have logged, oldest first."""
    own = {run.info.run_id for run in again.runs}
    models = registry.client().search_logged_models([registry.experiment("tiny")])
    models = sorted(models, key=lambda model: model.creation_timestamp)
    return [model.model_uri for model in models if model.source_run_id in own]


def test_a_killed_registration_goes_on_with_the_model_that_it_logged(killed):
    (logged,) = logged_by(killed)
    version = killed.register().version
    assert registry.version("tiny", version).source == logged
    assert logged_by(killed) == [logged]
    assert killed.run.info.status == "FINISHED"


def test_other_weights_under_the_same_key_never_get_the_model_of_a_killed_registration(killed, registered):
    """Other code, threads or another machine: what was logged is another model, and the version says whose it is."""
    before = killed.run.info.run_id
    killed.use_weights_of("2")
    version = registry.version("tiny", killed.register().version)
    assert version.source == logged_by(killed)[1]
    assert version.tags[registry.RUN] != before
    assert version.tags[registry.SHA256] == tags("2")[registry.SHA256]
    assert file_sha256(model_file(registered, version.version)) == version.tags[registry.SHA256]


def test_other_scores_under_the_same_key_are_logged_in_a_run_of_their_own(fresh_registry, registered, monkeypatch):
    again = Again(registered, "3", key="another")
    with monkeypatch.context() as until_then:
        until_then.setattr(MlflowClient, "log_inputs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again.register()
    before = again.run.info.run_id
    again.record = again.record.model_copy(update={"scores": {"recall": again.record.scores["recall"] | {"names": 2}}})
    again.register()
    other, found = again.runs
    assert (other.info.run_id, other.info.status) == (before, "KILLED")
    assert found.info.status == "FINISHED"
    assert found.data.metrics["recall/names"] == 2 == read_record("tiny", found.info.run_id).scores["recall"]["names"]
    assert tags("3")[registry.RUN] == found.info.run_id


def test_a_run_that_a_version_points_to_is_never_written_over_by_other_weights(fresh_registry, registered):
    """A stream run that was killed in a later update and goes on with --recompute, by newer code."""
    again = Again(registered, "2", key="another")
    version = again.register().version
    run = tags(version)[registry.RUN]
    again.use_weights_of("3")
    assert again.register().version != version
    assert tags(version)[registry.RUN] == run
    assert read_record("tiny", run).models["recall"].current != again.record.models["recall"].current


def test_a_stream_run_that_was_left_open_is_ended_once_the_settings_have_changed(fresh_registry, registered):
    """One that failed or was killed goes on under the same key, whatever was run between."""
    left = Again(registered, "3", key="another")
    experiment = registry.experiment("tiny")
    nested = fresh_registry.create_run(experiment, tags={"mlflow.parentRunId": left.parent}).info.run_id
    by_hand = fresh_registry.create_run(experiment).info.run_id
    assert registry.unfinished_stream_run("tiny", "another") == left.parent
    changed = registry.start_stream_run("tiny", "changed")
    beside = registry.start_stream_run("tiny", "changed")
    status = {run: fresh_registry.get_run(run).info.status for run in (left.parent, nested, by_hand, changed, beside)}
    assert status == {
        left.parent: "KILLED", nested: "KILLED", by_hand: "RUNNING", changed: "RUNNING", beside: "RUNNING",
    }  # fmt: skip
    assert registry.unfinished_stream_run("tiny", "another") == left.parent
    registry.finish_stream_run(left.parent, {}, {})
    assert fresh_registry.get_run(left.parent).info.status == "FINISHED", "it was another process's, still at work"


@pytest.fixture
def foreign(fresh_registry):
    """A version that somebody registered by hand, or whose run was killed before its first tag."""
    return str(fresh_registry.create_model_version("tiny", registry.version("tiny", "3").source).version)


def test_a_version_of_somebody_elses_is_refused_in_words(foreign):
    found = promoted(foreign)
    assert f"version {foreign} of tiny was not promoted" in found["said"]
    assert "nothing says what it was made from" in found["said"]
    assert (found["verdict"]["outcome"], found["verdict"]["gates"], where()) == ("fail", [], (None, None))
    with pytest.raises(Failed, match=f"version {foreign} of tiny is none that `recall run` has registered"):
        registry.run_of(registry.version("tiny", foreign))
    assert recall("report", "--version", foreign).exit_code == 1
    assert [row["learning_task"] for row in status()["versions"]] == ["names", "reviews", "countries", None]


def test_the_challenger_is_never_a_version_of_somebody_elses(foreign, registered):
    Again(registered, "2").register()
    assert registry.aliases("tiny")["challenger"] == "3"


@pytest.mark.parametrize(
    ("setting", "compared"), [("max_new_tokens", False), ("max_tokens", False), ("batch_size", True)]
)
def test_a_champion_scored_by_other_settings_is_not_compared(fresh_registry, registered, setting, compared):
    """One that generated shorter answers lost points for that, not for what it knows."""
    original = tags("1")["recall.run_id"]
    lineage = read_run_lineage("tiny", original).model_dump(mode="json")
    lineage["settings"]["evaluation"][setting] += 1
    run = fresh_registry.create_run(fresh_registry.get_experiment_by_name("tiny").experiment_id).info.run_id
    fresh_registry.log_artifacts(run, fresh_registry.download_artifacts(original, ""))
    fresh_registry.log_text(run, json.dumps(lineage), "lineage.json")
    fresh_registry.set_model_version_tag("tiny", "1", registry.RUN, run)
    moved("1")
    unseen = Verdict.model_validate(promoted("3")["verdict"]).gates[-1]
    assert unseen.compared_with == "the champion, version 1"
    if compared:
        assert (unseen.outcome, unseen.rows) == ("pass", 12)
    else:
        assert (unseen.outcome, unseen.rows) == ("borderline", 0)
        assert "by the same metric and settings, of films, spanish" in unseen.note


def test_a_restore_that_fails_leaves_nothing_behind(fresh_registry, registered, tmp_path):
    record = registry.find_update("tiny", tags("3")[registry.KEY])
    store, merged = Store(root=tmp_path / "store"), record.models["recall"].current
    with pytest.raises(Failed, match="MLflow holds other files than were registered"):
        restore(store, "tiny", record, merged.model_copy(update={"sha256": "0"}))
    assert not list((store.root / "work").iterdir())
    restore(store, "tiny", record, merged)
    assert store.manifest("merged", merged.fingerprint)["sha256"] == merged.sha256
    assert not list((store.root / "work").iterdir())
