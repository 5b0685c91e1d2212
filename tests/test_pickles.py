"""No pickle is loaded: planted ones do not run, and a whole run unpickles nothing but what torch restricts."""

import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_finetuning import STEPS, keep_checkpoints, run, weights

from recall.checkpoints import check_checkpoint
from recall.finetuning import MARKER, _files
from recall.loading import lay_over, load_model, load_tokenizer

WATCHED = Path(__file__).parent / "watched.py"
PICKLES = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "python_model.pkl")


class Attack:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (Path(self.proof),)


@pytest.fixture
def proof(tmp_path):
    """The file that an attack makes; the test fails if one did."""
    file = tmp_path / "proof"
    yield file
    assert not file.exists(), "a planted pickle ran"


def plant(file, proof):
    file.write_bytes(pickle.dumps(Attack(proof)))


def test_the_attack_works(tmp_path):
    plant(tmp_path / "attack.pkl", tmp_path / "ran")
    pickle.loads((tmp_path / "attack.pkl").read_bytes())
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    with suppress(RuntimeError):  # no tensors in it, it says once it has run
        torch.load(tmp_path / "attack.pkl", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_pickles_beside_the_weights_of_a_checkpoint_are_not_loaded(tiny_model_folder, tmp_path, proof):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_model_folder, folder)
    for name in PICKLES:
        plant(folder / name, proof)
    check_checkpoint(folder)
    load_tokenizer(folder)
    model = load_model(folder, torch.float32)
    name, expected = next(iter(load_file(folder / "model.safetensors").items()))
    assert torch.equal(model.state_dict()[name], expected)


def test_pickles_beside_an_adapter_are_not_loaded(undisturbed, tiny_model_folder, tmp_path, proof):
    shutil.copytree(undisturbed[1], tmp_path / "adapter")
    for name in PICKLES:
        plant(tmp_path / "adapter" / name, proof)
    lay_over(load_model(tiny_model_folder, torch.float32), tmp_path / "adapter")


@pytest.fixture(scope="module")
def undisturbed(tiny_model_folder, tmp_path_factory):
    """The report, adapter and training checkpoints of a fine-tuning."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(tiny_model_folder, folder / "out", folder / "work"), folder / "out", folder / "work"


def attacked(undisturbed, tmp_path, proof, name):
    work = tmp_path / "work"
    keep_checkpoints(undisturbed[2], work, STEPS - 2)
    plant(work / f"checkpoint-{STEPS - 2}" / name, proof)
    return work


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_planted_in_a_training_checkpoint_is_not_loaded(name, undisturbed, tiny_model_folder, tmp_path, proof):
    """Transformers' Trainer keeps its state in these; the checkpoint is no longer what was written, and is dropped."""
    work = attacked(undisturbed, tmp_path, proof, name)
    run(tiny_model_folder, tmp_path / "out", work)
    assert weights(tmp_path / "out") == weights(undisturbed[1])


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_it_is_not_even_run_where_its_hash_was_forged(name, undisturbed, tiny_model_folder, tmp_path, proof):
    """What is left then is torch's restricted reader, which refuses; `training_args.bin` is never read."""
    work = attacked(undisturbed, tmp_path, proof, name)
    folder = work / f"checkpoint-{STEPS - 2}"
    marker = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps(marker | {"files": _files(folder)}))
    if name == "training_args.bin":
        run(tiny_model_folder, tmp_path / "out", work)
    else:
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            run(tiny_model_folder, tmp_path / "out", work)
