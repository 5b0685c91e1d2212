"""Fine-tuning of one expert: LoRA over a frozen base, loss on the answer only, resumed where a killed process stopped.

Shapes: B batch, T tokens, N answer tokens of the batch.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from pydantic import BaseModel, ConfigDict
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from recall.answer_logits import LogitReader
from recall.checkpoints import Checkpoint, side_files
from recall.encoding import encode
from recall.errors import Failed
from recall.ewc import Consolidation, Penalty
from recall.holding import HeldOutputs, Hold
from recall.learning_tasks import Row
from recall.loading import load_model, load_tokenizer, training_dtype
from recall.progress import track
from recall.save_tensors import save_tensors, system_errors
from recall.settings import FinetuningSettings
from recall.tensor_files import weight_files

# What torch.save says of a disk that takes no more, by the moment at which it finds out.
TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed writing", "unexpected pos", "iostream error")
IGNORED = -100
MARKER = "complete.json"
Example = tuple[list[int], list[int]]


class FinetuningReport(BaseModel):
    """What a fine-tuning did: `losses` has a value an optimiser step, `tokens` counts all without padding.

    A loss includes the penalty where there is one. `seconds` is this process's share where an earlier one was
    interrupted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    tokens: int
    losses: list[float]
    seconds: float
    threads: int
    torch_version: str
    dtype: str


def finetune(
    start: Checkpoint,
    rows: list[Row],
    settings: FinetuningSettings,
    out: Path,
    work: Path,
    what: str = "fine-tune",
    keep: Consolidation | Hold | None = None,
) -> FinetuningReport:
    """Train a LoRA adapter (Hu et al. 2021) over the full checkpoint `start` and write it to `out`.

    Base weights stay in the training dtype, the adapter and the optimiser's state in float32. The run depends on
    `start`, `rows`, `settings`, `keep`, the thread count and the library versions alone: a process that finds a
    complete checkpoint in `work` of all these, and of as many processes, goes on from there and ends with bit-identical
    weights.

    Started by `accelerate launch` in several processes, each takes every so-manieth batch and a step has them all; the
    first process writes the one adapter.

    With `keep` the loss has a penalty for leaving `start`: elastic weight consolidation's (`recall.ewc`), or that
    of earlier experts' moments (`recall.holding`).

    Raises:
        BadInput: `start` cannot be loaded, or the files of `keep` are of other weights than LoRA changes.
        OSError, Failed: `out` or `work` cannot be written.
    """
    started = time.monotonic()
    dtype = training_dtype(settings.dtype)
    plan = _batches(start, rows, settings)
    # Before the model is loaded: they choose this process's GPU.
    arguments = _training_arguments(settings, len(plan), work)
    set_seed(settings.seed)
    _compute_deterministically()
    model = get_peft_model(load_model(start.folder, dtype), _lora_config(settings))
    digest = _digest(start, rows, settings, keep)
    with arguments.main_process_first():
        last = _last_complete(work, digest)
    trainer = _AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=plan,
        data_collator=lambda batches: _collate(batches[0]),
        callbacks=[_Watch(digest, what)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.reader = LogitReader(model)
    trainer.penalty = keep.penalty(model) if keep and keep.strength else None
    # Has Trainer count the answer tokens of a whole optimiser step.
    trainer.model_accepts_loss_kwargs = True
    with disable_input_dtype_casting(model), _checkpoints_written(work):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    whole = trainer.accelerator.get_state_dict(trainer.model_wrapped) if arguments.world_size > 1 else None
    if trainer.is_world_process_zero():
        _save_adapter(model, out, whole)
    return FinetuningReport(
        steps=trainer.state.global_step,
        tokens=sum(len(ids) for batch in plan for ids, _ in batch),
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        seconds=time.monotonic() - started,
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        dtype=str(dtype).removeprefix("torch."),
    )


class _AnswerTrainer(Trainer):
    """Trainer whose loss reads the logits at the answer's positions only, and may have a penalty on the weights."""

    reader: LogitReader
    penalty: Penalty | HeldOutputs | None
    loss_is_scaled_for_ga = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Sum of the answer tokens' cross entropies over the number of answer tokens in the optimiser step.

        The batches of a step bear its penalty by their share in these tokens, so that the step has it once.
        """
        ids_BT, labels_BT = inputs["input_ids"], inputs["labels"]
        # The state before a token predicts it.
        chosen_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
        chosen_BT[:, :-1] = labels_BT[:, 1:] != IGNORED
        if self.args.world_size > 1:
            self.reader.read_through(model)
        low = self.reader.dtype == torch.bfloat16
        with torch.autocast(ids_BT.device.type, dtype=torch.bfloat16, enabled=low):
            states_N = self.reader.row_states(ids_BT, chosen_BT)
            log_probs_N = self.reader.log_probs(states_N, labels_BT[:, 1:][chosen_BT[:, :-1]])
        loss = -log_probs_N.sum() / num_items_in_batch
        if self.penalty is not None:
            loss = loss + len(log_probs_N) / num_items_in_batch * self.penalty()
        # The tokens are those of all processes, whose gradients are averaged.
        total: torch.Tensor = loss * self.args.world_size
        return total


class _Watch(TrainerCallback):
    """Shows progress, and marks a checkpoint complete once all of it is written."""

    def __init__(self, digest: str, what: str) -> None:
        self.digest = digest
        self.what = what
        self.bar: Iterator[int] = iter(())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        todo = range(state.global_step, state.max_steps)
        self.bar = track(todo, self.what, total=state.max_steps, done=state.global_step)
        next(self.bar, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(self.bar, None)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        partial = folder / f"{MARKER}.partial"
        partial.write_text(json.dumps({"digest": self.digest, "files": _files(folder)}))
        partial.rename(folder / MARKER)


def _batches(start: Checkpoint, rows: list[Row], settings: FinetuningSettings) -> list[list[Example]]:
    """Every batch of the run, all epochs in order, so that to resume is to skip the first n of them.

    Within an epoch rows of like length share a batch (ties at random) and the batches come in random order.
    """
    tokenizer = load_tokenizer(start.folder)
    prompts, targets = [row.prompt for row in rows], [[row.target] for row in rows]
    examples: list[Example] = []
    for encoded in encode(tokenizer, prompts, targets, settings.max_tokens, end=True):
        (answer,) = encoded.answers
        examples.append((encoded.prompt + answer, [IGNORED] * len(encoded.prompt) + answer))
    order = random.Random(settings.seed)
    plan: list[list[Example]] = []
    size = settings.batch_size
    for _ in range(math.ceil(settings.epochs)):
        order.shuffle(examples)
        by_length = sorted(examples, key=lambda example: len(example[0]))
        epoch = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        order.shuffle(epoch)
        plan += epoch
    return plan[: math.ceil(settings.epochs * math.ceil(len(rows) / size))]


def _collate(batch: list[Example]) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, _ in batch)
    return {
        "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in batch]),
    }


def _lora_config(settings: FinetuningSettings) -> LoraConfig:
    lora = settings.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


def _training_arguments(settings: FinetuningSettings, batches: int, work: Path) -> TrainingArguments:
    """The plan is the data: one pass in order, a planned batch a loader's item."""
    steps = math.ceil(batches / settings.gradient_accumulation / _processes())
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=1,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        # The one before the newest stays until the newest is marked complete.
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        seed=settings.seed,
        use_cpu=not on_gpu,
    )


def _compute_deterministically() -> None:
    """A GPU too gives the same bits twice, with cuBLAS set up as in `recall.loading`.

    Transformers' `full_determinism` gives cuBLAS next to no memory and, set before CUDA starts, has the host wait for
    every kernel.
    """
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
        # Or every new tensor is filled first, by a kernel of its own.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False


@contextmanager
def _checkpoints_written(work: Path) -> Iterator[None]:
    """What Trainer's libraries say of a disk that is full, as an error of the system or a sentence."""
    try:
        with system_errors(work):
            yield
    except RuntimeError as error:
        if not any(words in str(error) for words in TORCH_CANNOT_WRITE):
            raise
        raise Failed(f"a checkpoint cannot be written to {work}; free its disk, and run the same again") from error


def _last_complete(work: Path, digest: str) -> Path | None:
    """The newest checkpoint in `work` that was written whole for this very run; all others are removed."""
    work.mkdir(parents=True, exist_ok=True)
    complete: list[Path] = []
    for folder in work.glob("checkpoint-*"):
        try:
            marker = json.loads((folder / MARKER).read_text())
        except (OSError, ValueError):
            marker = None
        if marker == {"digest": digest, "files": _files(folder)}:
            complete.append(folder)
        else:
            shutil.rmtree(folder)
    return max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _files(folder: Path) -> dict[str, str]:
    """Every file's SHA-256: what was altered since is not handed to `torch.load`, whose format is a pickle."""
    found = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(MARKER):
            with path.open("rb") as file:
                found[path.name] = file_digest(file, "sha256").hexdigest()
    return found


def _digest(start: Checkpoint, rows: list[Row], settings: FinetuningSettings, keep: Consolidation | Hold | None) -> str:
    """Of all that a checkpoint to go on from shares with this run; another base's would fit as well by its shapes."""
    whole = settings.model_dump_json() + "".join(row.model_dump_json() for row in rows)
    whole += keep.digest() if keep else ""
    for path in [*weight_files(start.folder), *side_files(start.folder)]:
        with path.open("rb") as file:
            whole += f" {path.name} {file_digest(file, 'sha256').hexdigest()}"
    if torch.cuda.is_available():
        whole += f" {torch.cuda.get_device_name()} {os.environ['CUBLAS_WORKSPACE_CONFIG']}"
    whole += (
        f" {[module.__version__ for module in (torch, transformers, peft)]} {_processes()} {torch.get_num_threads()}"
    )
    return sha256(whole.encode()).hexdigest()


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _save_adapter(model: PeftModel, out: Path, whole: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapter as PEFT would, but for what differs between machines and processes: paths and set order.

    `whole` has the weights where they are spread over processes.
    """
    out.mkdir(parents=True, exist_ok=True)
    adapter = get_peft_model_state_dict(model, state_dict=whole)
    state = {name: tensor.contiguous().cpu() for name, tensor in adapter.items()}
    save_tensors(state, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config["base_model_name_or_path"] = ""
    config["inference_mode"] = True
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (out / "adapter_config.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
