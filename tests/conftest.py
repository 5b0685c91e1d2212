"""Tiny models and a tokenizer, made once: no network, no real weights."""

import gc
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import forked
import hypothesis
import project
import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from xdist.scheduler import LoadScopeScheduling

# No example has to be fast: speed is measured in benchmarks/.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

pytest_plugins = ["audited_project", "merge_fixture", "prefect_fixture", "promotion_fixture", "servers"]

# The longest files go first, so that no worker is left alone with one at the end.
SLOWEST_FIRST = (
    "test_chaos",
    "test_kill",
    "test_continual_update",
    "test_compare",
    "test_audit",
    "test_promotion",
    "test_moves",
    "test_registration",
    "test_baselines",
    "test_schedule",
    "test_merge_options",
    "test_merge_command",
)

# For the workers and all that they start: with as many threads in each as there are cores, they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files whose tests share a finished project are one worker's, as the tests of any one file are.
SHARED_PROJECT = {
    "test_audit": "audited",
    "test_audit_reach": "audited",
    "test_promotion": "promoted",
    "test_moves": "promoted",
    "test_registration": "promoted",
    "test_approval": "promoted",
}


def pytest_configure(config):
    """One process that forks and one project to copy, for all workers."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        forked.start()
        project.share_template()


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """For `--dist loadfile`; `loadgroup`, which could do this too, marks nothing with pytest 9."""
    return ByProject(config, log) if config.getoption("dist") == "loadfile" else None


class ByProject(LoadScopeScheduling):
    def _split_scope(self, nodeid):
        stem = Path(nodeid.partition("::")[0]).stem
        return SHARED_PROJECT.get(stem, stem)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny matrices gain nothing from threads, and sums depend on their number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def little_to_search_for_garbage():
    """What has been imported stays: a merge, which collects garbage several times, need not go through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """See `tiny.tokenizer`."""
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory, tiny_tokenizer):
    """A random Llama in float32 with its tokenizer: 3 blocks, grouped queries, tied head."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    tiny.llama(folder, vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=48, initializer_range=0.2)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2_folder(tmp_path_factory, tiny_tokenizer):
    """A random GPT-2 in float32 with its tokenizer: learned positions, Conv1D weights."""
    folder = tmp_path_factory.mktemp("tiny") / "gpt2"
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), **shape, **ends)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def files_of_at_most():
    """A context in which the system refuses this process every byte of a file beyond so many, as a full disk would."""

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
