"""Tiny models and a tokenizer, made once: no network, no real weights."""

import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel

pytest_plugins = ["audited_project", "merge_fixture", "prefect_fixture", "servers"]

# Files that run the whole flow many times go first, so that no worker is left alone with one at the end.
SLOWEST_FIRST = ("test_chaos", "test_kill", "test_continual_update", "test_baselines", "test_schedule")


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny matrices gain nothing from threads, and sums depend on their number."""
    torch.set_num_threads(1)


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
