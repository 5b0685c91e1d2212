"""Where stages run changes no result: settings, keys, and what a worker checks before it does the work."""

import pickle
from pathlib import Path

import pytest
import torch
from counting_stage import count_up, runs

from flows.pools import typical
from flows.preflight import Inputs
from flows.stream_state import Stream
from recall.errors import BadInput, Failed
from recall.load_settings import load_settings
from tasks import workers
from tasks.store import Store

SHIPPED = Path(__file__).parents[1] / "params.yaml"
DASK = ["threads=2", "runner.kind=dask", "runner.address=tcp://host:8786", "runner.workers=4"]


def stream(*overrides):
    settings = load_settings(SHIPPED, overrides=["threads=2", *overrides])
    inputs = Inputs("base", dict.fromkeys(settings.learning_tasks, "hash"), None, ())
    return Stream(settings, inputs, Store(root=Path("store")), None)


def test_no_key_and_no_recorded_setting_depends_on_where_stages_run():
    here, spread = stream(), stream(*DASK, "store_remote=s3://bucket/prefix")
    for position in (1, 2, 3):
        assert here.key(position) == spread.key(position)
        assert here.model_key(position) == spread.model_key(position)
    assert here.settings.model_dump() == spread.settings.model_dump()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["runner.kind=dask"], "runner.kind dask needs threads"),
        (["runner.address=tcp://host:8786"], "set kind to dask"),
        (["threads=1", "runner.kind=dask", "runner.address=host:8786"], "runner.address"),
        (["runner.workers=0"], "runner.workers"),
        (["store_remote=/folder"], "store_remote is no fsspec URL"),
        (["store_remote=s3://key:secret@bucket"], "what is secret goes into the environment"),
    ],
)
def test_what_cannot_be_is_one_sentence(overrides, sentence):
    with pytest.raises(BadInput, match=sentence) as caught:
        load_settings(SHIPPED, overrides=overrides)
    assert "secret@" not in str(caught.value)


def test_a_stage_is_sent_by_name_so_that_a_worker_runs_its_own_code():
    assert pickle.loads(pickle.dumps(count_up)) is count_up
    assert b"number.txt" not in pickle.dumps(count_up)


def test_a_worker_with_other_code_refuses(tmp_path):
    with pytest.raises(Failed, match="has other code of the stage count_up than this process"):
        count_up.make(Store(root=tmp_path), "one", {"number": 1}, {"code": "other", "run": "1", "threads": 1})
    assert not list(tmp_path.iterdir())


def test_a_worker_has_the_threads_of_the_settings_and_its_artifacts_say_so(tmp_path):
    runs.clear()
    store, before = Store(root=tmp_path), torch.get_num_threads()
    try:
        where = {"code": count_up.code, "run": "1", "threads": 3}
        ref = count_up.make(store, "one", {"number": 1}, where)
    finally:
        torch.set_num_threads(before)
    assert store.manifest("samples", ref.fingerprint)["environment"]["threads"] == 3
    assert runs == [1]


class TwoWorkers:
    """What two workers answer to being looked at, and nothing else of a Dask client."""

    def __init__(self, **of_second):
        self.of_second = of_second

    def run(self, _, probe):
        assert probe.exists()
        versions = workers._versions() | {workers.GPU: "H100", workers.FAST: "bfloat16"}
        return {"a": ("one", 1, True, versions), "b": ("two", 1, True, versions | self.of_second)}


def test_workers_may_have_what_the_process_that_sends_them_stages_has_not(tmp_path):
    workers._check(TwoWorkers(), tmp_path)


@pytest.mark.parametrize(
    ("differs", "sentence"),
    [
        ({"torch": "1.0"}, "Dask worker two has torch 1.0 and this process "),
        ({"the processor type": "other"}, "Dask worker two has the processor type other and this process "),
        ({workers.GPU: "none"}, "Dask worker two has the GPU none and the first worker H100"),
        ({workers.FAST: "float32"}, "Dask worker two has the fast number type float32 and the first worker bfloat16"),
    ],
)
def test_workers_whose_results_would_differ_are_refused(tmp_path, differs, sentence):
    with pytest.raises(BadInput, match=sentence):
        workers._check(TwoWorkers(**differs), tmp_path)


def test_where_a_file_of_samples_lies_is_in_no_stages_key(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.pools.cluster", lambda store, label, **given: given)
    asked = []
    for name in ("one.jsonl", "other.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
        made = stream("sampling.source=heldout", f"sampling.file={tmp_path / name}")
        asked.append(typical(made, "label", expert=None, train=None))
    assert asked[0]["settings"] == asked[1]["settings"]
    assert asked[0]["heldout"].fingerprint == asked[1]["heldout"].fingerprint
