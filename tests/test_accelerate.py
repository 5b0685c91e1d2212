"""One fine-tuning in two processes, started by `accelerate launch` as on two GPUs; here gloo on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

pytestmark = pytest.mark.nightly
ROWS = [{"id": str(i), "prompt": f"name {i}:", "target": f"a{i} b"} for i in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows and settings: 12 batches, so 12 steps of one process and 6 of two."""
    folder = tmp_path_factory.mktemp("accelerate")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {"kind": "translation", "metric": "chrf", "source": {"path": "none"}}
    finetuning = {"batch_size": 4, "epochs": 2, "learning_rate": 0.01, "checkpoint_steps": 3, "dtype": "float32"}
    settings = {
        "stream": {"name": "s", "learning_tasks": ["one"]},
        "base_model": {"folder": "base"},
        "learning_tasks": {"one": task},
        "finetuning": finetuning | {"lora": {"r": 4, "alpha": 8}},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    return folder


def adapter(folder, start, name, launcher, *options):
    command = [sys.executable, *launcher, "-m", "recall.finetune_job", "--start", str(start), "--out", name]
    command += ["--rows", "train.jsonl", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / name).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    return load_file(folder / name / "adapter_model.safetensors")


def launch(*options):
    """Two processes; where there is no GPU `--multi_gpu` is gloo (`--cpu` would start one process, or ask for MPI)."""
    common = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return ["-m", "accelerate.commands.launch", "--num_processes", "2", *common, *options]


@pytest.fixture(scope="module")
def alone(folder, tiny_model_folder):
    """The adapter of one process whose steps have two batches, as two processes' steps do."""
    return adapter(folder, tiny_model_folder, "alone", [], "--set", "finetuning.gradient_accumulation=2")


def test_two_processes_train_what_one_does_with_steps_of_two_batches(folder, alone, tiny_model_folder):
    """Equal up to the order of float32 sums, as the gradients are those of the same tokens."""
    both = adapter(folder, tiny_model_folder, "both", launch("--multi_gpu"), "--work", "kept")
    assert both.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(both[name], tensor, rtol=1e-3, atol=1e-4)
    assert any(tensor.abs().max() > 0 for name, tensor in both.items() if "lora_B" in name)
    last = folder / "kept" / "checkpoint-6"
    assert (last / "rng_state_1.pth").is_file(), "the second process ran"
    assert (last / "complete.json").is_file()


def test_the_shipped_fsdp_config_is_one_that_accelerate_reads():
    """No more: without a GPU accelerate leaves FSDP off, so what it does was not tried."""
    config = load_config_from_file(str(Path(__file__).parents[1] / "profiles" / "fsdp.accelerate.yml"))
    assert config.distributed_type == "FSDP"
    assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
