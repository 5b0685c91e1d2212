"""Fine-tuning learns the answer, is deterministic, and goes on after any kill as if nothing had happened."""

import json
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from recall.answer_logits import CHUNK, LogitReader
from recall.checkpoints import Checkpoint, check_checkpoint
from recall.errors import Failed
from recall.evaluation import evaluate
from recall.finetuning import _digest, _last_complete, finetune
from recall.learning_tasks import Row, TaskSpec
from recall.loading import lay_over, load_model, load_tokenizer
from recall.settings import EvaluationSettings, FinetuningSettings, LoraSettings

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ROWS = [
    Row(id=f"{i}", prompt=" ".join(WORDS[i % 5 : i % 5 + 1 + i % 7]), target="good" if i % 5 > 2 else "bad")
    for i in range(18)
]
"""Dropout draws random numbers, 18 rows make uneven batches, and the last optimiser step of the run is short too."""
SETTINGS = FinetuningSettings(
    lora=LoraSettings(r=4, alpha=8, dropout=0.1),
    epochs=3,
    batch_size=4,
    gradient_accumulation=2,
    learning_rate=1e-2,
    checkpoint_steps=2,
    dtype="float32",
    seed=3,
)
STEPS = 8


def weights(out):
    return (out / "adapter_model.safetensors").read_bytes(), (out / "adapter_config.json").read_bytes()


def run(folder, out, work, settings=SETTINGS, rows=ROWS):
    return finetune(Checkpoint(folder), rows, settings, out, work)


@pytest.fixture(scope="module")
def undisturbed(tiny_model_folder, tmp_path_factory):
    """The report, adapter and checkpoints of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(tiny_model_folder, folder / "out", folder / "work"), folder / "out", folder / "work"


def test_the_adapter_is_what_peft_loads_and_names_no_path(undisturbed, tiny_model_folder):
    report, out, _ = undisturbed
    check_checkpoint(out)
    model = lay_over(load_model(tiny_model_folder, torch.float32), out)
    assert any(parameter.any() for name, parameter in model.named_parameters() if "lora_B" in name)
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(tiny_model_folder.parent) not in (out / "adapter_config.json").read_text()
    assert report.steps == STEPS == len(report.losses)
    assert report.threads == torch.get_num_threads()


def test_the_same_input_gives_the_same_bytes_wherever_it_lies(undisturbed, tiny_model_folder, tmp_path):
    elsewhere = shutil.copytree(tiny_model_folder, tmp_path / "elsewhere")
    report = run(elsewhere, tmp_path / "out", tmp_path / "work")
    assert weights(tmp_path / "out") == weights(undisturbed[1])
    assert report.losses == undisturbed[0].losses


def test_another_seed_gives_other_weights(undisturbed, tiny_model_folder, tmp_path):
    run(tiny_model_folder, tmp_path / "out", tmp_path / "work", SETTINGS.model_copy(update={"seed": 4}))
    assert weights(tmp_path / "out")[0] != weights(undisturbed[1])[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_it_learns(architecture, tiny_model_folder, tiny_gpt2_folder, tmp_path):
    folder = {"llama": tiny_model_folder, "gpt2": tiny_gpt2_folder}[architecture]
    settings = SETTINGS.model_copy(update={"epochs": 25, "gradient_accumulation": 1, "lora": LoraSettings(r=8)})
    run(folder, tmp_path / "out", tmp_path / "work", settings)
    spec = TaskSpec(kind="classification", metric="accuracy", labels=["good", "bad"], source={})
    model = lay_over(load_model(folder, torch.float32), tmp_path / "out")
    assert evaluate(model, load_tokenizer(folder), ROWS, spec, EvaluationSettings()).score == 1


def one_step(folder, tmp_path, name, **changes):
    settings = SETTINGS.model_copy(update={"epochs": 1, "warmup_ratio": 0, "lora": LoraSettings(r=4)} | changes)
    return run(folder, tmp_path / name, tmp_path / f"{name}_work", settings)


def test_the_loss_is_the_mean_over_answer_tokens_of_the_definition(tiny_model_folder, tmp_path):
    """LoRA starts at zero difference, so the first step's loss is the base model's own, one row at a time."""
    report = one_step(tiny_model_folder, tmp_path, "all", batch_size=len(ROWS), gradient_accumulation=1)
    model, tokenizer = load_model(tiny_model_folder, torch.float32), load_tokenizer(tiny_model_folder)
    total, count = 0.0, 0
    for row in ROWS:
        ids = tokenizer(f"{row.prompt} {row.target}{tokenizer.eos_token}", return_tensors="pt").input_ids.to(
            model.device
        )
        start = len(tokenizer(row.prompt).input_ids)
        with torch.no_grad():
            total += cross_entropy(model(ids).logits[0, start - 1 : -1], ids[0, start:], reduction="sum").item()
        count += ids.shape[1] - start
    assert report.losses == pytest.approx([total / count], rel=1e-5)


def test_accumulated_batches_weigh_every_answer_token_alike(tiny_model_folder, tmp_path):
    whole = one_step(tiny_model_folder, tmp_path, "whole", batch_size=18, gradient_accumulation=1)
    parts = one_step(tiny_model_folder, tmp_path, "parts", batch_size=4, gradient_accumulation=5)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)


def test_bfloat16_keeps_the_adapter_in_float32(tiny_model_folder, tmp_path):
    report = one_step(tiny_model_folder, tmp_path, "low", dtype="bfloat16")
    header = (tmp_path / "low" / "adapter_model.safetensors").read_bytes()[:4000]
    assert report.dtype == "bfloat16"
    assert b'"F32"' in header
    assert b'"BF16"' not in header


def test_a_logit_that_is_capped_is_read_from_the_models_own_forward(tiny_model_folder):
    """Where the head is not all (Gemma 2 caps its logits), the flat way would be wrong and is not taken."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2}
    shape = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "final_logit_softcapping": 0.1}
    capped = Gemma2ForCausalLM(Gemma2Config(**shape, **heads)).eval()
    reader = LogitReader(capped)
    ids_BT = torch.arange(12).reshape(2, 6)
    chosen_BT = torch.tensor([[0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0]]).bool()
    states_N, _ = reader.states({"input_ids": ids_BT}, chosen_BT)
    assert torch.equal(reader.logits(states_N), capped(ids_BT).logits[chosen_BT])
    assert not reader.head_is_all
    assert LogitReader(load_model(tiny_model_folder, torch.float32)).head_is_all


def test_more_answer_tokens_than_a_chunk_have_the_gradient_of_the_definition(tiny_model_folder):
    """Long answers are read in chunks whose logits are computed again in the backward pass."""
    reader = LogitReader(load_model(tiny_model_folder, torch.float32))
    torch.manual_seed(0)
    device = reader.causal_lm.device
    states_NE = torch.randn(2 * CHUNK + 7, 32, device=device, requires_grad=True)
    tokens_N = torch.arange(2 * CHUNK + 7, device=device) % 284
    (found_NE,) = torch.autograd.grad(-reader.log_probs(states_NE, tokens_N).sum(), states_NE)
    whole = cross_entropy(states_NE @ reader.head.weight.T, tokens_N, reduction="sum")
    (wanted_NE,) = torch.autograd.grad(whole, states_NE)
    torch.testing.assert_close(found_NE, wanted_NE)


def keep_checkpoints(work, to, *steps):
    for step in steps:
        shutil.copytree(work / f"checkpoint-{step}", to / f"checkpoint-{step}")


def no_marker(checkpoint):
    (checkpoint / "complete.json").unlink()


def half_an_optimiser(checkpoint):
    (checkpoint / "optimizer.pt").write_bytes((checkpoint / "optimizer.pt").read_bytes()[:1000])


def no_weights(checkpoint):
    (checkpoint / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize("damage", [no_marker, half_an_optimiser, no_weights])
def test_a_checkpoint_that_is_not_whole_is_skipped_for_the_one_before(damage, undisturbed, tiny_model_folder, tmp_path):
    _, out, work = undisturbed
    keep_checkpoints(work, tmp_path / "work", STEPS - 2, STEPS)
    damage(tmp_path / "work" / f"checkpoint-{STEPS}")
    before = (tmp_path / "work" / f"checkpoint-{STEPS - 2}" / "optimizer.pt").stat()
    run(tiny_model_folder, tmp_path / "out", tmp_path / "work")
    assert weights(tmp_path / "out") == weights(out)
    assert (tmp_path / "work" / f"checkpoint-{STEPS - 2}" / "optimizer.pt").stat().st_ino == before.st_ino


def test_a_checkpoint_of_other_rows_is_not_resumed(undisturbed, tiny_model_folder, tmp_path):
    keep_checkpoints(undisturbed[2], tmp_path / "work", STEPS)
    other = [*ROWS[:-1], ROWS[-1].model_copy(update={"target": "bad"})]
    run(tiny_model_folder, tmp_path / "out", tmp_path / "work", rows=other)
    run(tiny_model_folder, tmp_path / "fresh", tmp_path / "fresh_work", rows=other)
    assert weights(tmp_path / "out") == weights(tmp_path / "fresh")


def test_a_checkpoint_of_another_base_is_not_resumed(undisturbed, tiny_model_folder, tmp_path, tiny_tokenizer):
    """Its shapes fit, so nothing but the digest tells them apart."""
    other = shutil.copytree(tiny_model_folder, tmp_path / "other")
    moved = {name: tensor + 0.1 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(moved, other / "model.safetensors", metadata={"format": "pt"})
    keep_checkpoints(undisturbed[2], tmp_path / "work", STEPS - 2)
    run(other, tmp_path / "out", tmp_path / "work")
    run(other, tmp_path / "fresh", tmp_path / "fresh_work")
    assert weights(tmp_path / "out") == weights(tmp_path / "fresh")


def test_nor_is_one_of_another_number_of_processes(undisturbed, tiny_model_folder, tmp_path, monkeypatch):
    """Their steps are of other batches."""

    def found():
        return _last_complete(tmp_path / "work", _digest(Checkpoint(tiny_model_folder), ROWS, SETTINGS, None))

    keep_checkpoints(undisturbed[2], tmp_path / "work", STEPS)
    assert found() == tmp_path / "work" / f"checkpoint-{STEPS}"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert found() is None


@pytest.mark.parametrize(("share", "error"), [(0.5, OSError), (1.5, Failed)])
def test_a_disk_that_fills_up_is_no_error_of_a_library(
    undisturbed, tiny_model_folder, tmp_path, files_of_at_most, share, error
):
    """The adapter of a checkpoint, whose library says it one way, and its optimiser's state, twice as large."""
    size = (undisturbed[1] / "adapter_model.safetensors").stat().st_size
    with files_of_at_most(int(share * size)), pytest.raises(error, match=r"File too large|free its disk"):
        run(tiny_model_folder, tmp_path / "out", tmp_path / "work")
    assert not (tmp_path / "out").exists()


def killed_when(moment, *arguments):
    """Run `finetune` in a process of its own and kill -9 it once `moment` exists."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recall.finetuning"])
    process = context.Process(target=in_one_thread, args=arguments)
    process.start()
    while process.is_alive() and not moment.exists():
        time.sleep(0.0005)
    process.kill()
    process.join()
    return process.exitcode


def in_one_thread(*arguments):
    torch.set_num_threads(1)
    finetune(*arguments)


def test_killed_again_and_again_it_ends_with_the_same_bytes(undisturbed, tiny_model_folder, tmp_path):
    """Kills fall into the writing of a checkpoint (its folder is there, its marker not yet) and right after one."""
    out, work = tmp_path / "out", tmp_path / "work"
    arguments = (Checkpoint(tiny_model_folder), ROWS, SETTINGS, out, work)
    moments = [
        "checkpoint-2",
        "checkpoint-2/complete.json",
        "checkpoint-4/optimizer.pt",
        "checkpoint-6/trainer_state.json",
    ]
    codes = [killed_when(work / moment, *arguments) for moment in moments]
    assert set(codes) == {-9}
    assert not Path(out).exists()
    report = finetune(*arguments)
    assert weights(out) == weights(undisturbed[1])
    assert report.losses == undisturbed[0].losses
    assert json.loads((work / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["global_step"] == STEPS
