"""All that can be checked before the first training step, so that bad input costs seconds and leaves nothing behind."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ValidationError

from recall.checkpoints import Checkpoint, check_architecture, check_checkpoint
from recall.context_length import positions
from recall.errors import BadInput
from recall.learning_tasks import check_learning_task, json_lines
from recall.prompts import read_samples
from recall.settings import Settings
from tasks import data_versions, registry
from tasks.refs import digest, file_sha256
from tasks.remote import check_remote
from tasks.store import Store

BASE = "base_model"


@dataclass(frozen=True)
class Inputs:
    """The DVC hash of the base model and of every data set, and where Git stood when they were read."""

    base_hash: str
    data_hashes: dict[str, str]
    git_commit: str | None
    draft_reasons: tuple[str, ...]


def check_inputs(settings: Settings, take_in: list[str], meanwhile: Callable[[], None] = lambda: None) -> Inputs:
    """Check the base model, every data set, the store and MLflow; if all is well, take in what `take_in` names.

    Args:
        meanwhile: begins what takes its time elsewhere; called once only MLflow, seconds to import, is left. A store
            of MLflow that cannot be used is found after it.

    Raises:
        BadInput: anything that would make the run fail or mislead, in one sentence.
    """
    names = [*settings.stream.learning_tasks, *settings.stream.unseen]
    folders = {BASE: settings.base_folder} | {name: settings.task_folder(name) for name in names}
    for name in take_in:
        if name not in folders:
            raise BadInput(f"--take-in {name}: the stream has no such data set; it has {', '.join(folders)}")
    for folder in folders.values():
        data_versions.ensure_present(folder)
    check_checkpoint(settings.base_folder)
    check_context(settings)
    model_known = _model_checked(settings)
    if not model_known.is_file():
        check_model(settings)
    for name in names:
        trained_on = name in settings.stream.learning_tasks
        check_learning_task(name, folders[name], settings.learning_tasks[name], trained_on)
    check_samples(settings)
    for name, folder in folders.items():
        if name not in take_in:
            data_versions.check_clean(folder)
            _check_prepared_with(settings, name, folder)
    # These make files, so they come after every other check.
    Store(root=settings.store).check_writable()
    model_known.parent.mkdir(exist_ok=True)
    model_known.touch()
    if settings.store_remote:
        check_remote(settings.store_remote)
    meanwhile()
    registry.client()
    for name in dict.fromkeys(take_in):
        data_versions.take_in(folders[name])
    hashes = {name: data_versions.tracked_hash(folder) for name, folder in folders.items()}
    commit, reasons = _draft_reasons(folders)
    return Inputs(hashes.pop(BASE), hashes, commit, reasons)


def check_baselines(settings: Settings) -> None:
    """Of a run, for a comparison names its methods.

    Raises:
        BadInput: SLERP would have another number of models than two, which a merge would say after training.
    """
    update = settings.update
    base_and_one_expert = len(settings.stream.learning_tasks) == 1 and update.pool != "experts"
    if "slerp" in settings.baselines and update.pool_has_experts and not base_and_one_expert:
        raise BadInput(
            "baselines names slerp, which goes between two models, but the pool has every expert; take it out, or set "
            "update.pool current and update.start_from merged"
        )


def _draft_reasons(folders: dict[str, Path]) -> tuple[str | None, tuple[str, ...]]:
    commit, clean = data_versions.git_commit()
    reasons = []
    if commit is None or not clean:
        reasons.append("the Git tree has uncommitted changes" if commit else "there is no Git commit")
    unpushed = data_versions.unpushed(list(folders.values()))
    if unpushed:
        reasons.append(f"not pushed to the DVC remote: {', '.join(path.name for path in unpushed)}")
    return commit, tuple(reasons)


def check_context(settings: Settings) -> None:
    """Raise BadInput where texts may be longer than the base model has positions for, an index error hours later."""
    limit = positions(Checkpoint(settings.base_folder))
    for section in ("finetuning", "sampling", "representations", "evaluation"):
        asked = getattr(settings, section).max_tokens
        if limit is not None and asked > limit:
            raise BadInput(
                f"{section}.max_tokens is {asked}, but the base model in {settings.base_folder} has {limit} positions; "
                f"set it to {limit} or less"
            )


def _check_prepared_with(settings: Settings, name: str, folder: Path) -> None:
    """What a DVC stage made must come from the settings that are in force now, wherever these were changed."""
    key = BASE if name == BASE else f"learning_tasks.{name}"
    now: BaseModel = settings.base_model if name == BASE else settings.learning_tasks[name]
    recorded = data_versions.recorded_params(folder)
    if key not in recorded:
        return
    try:
        before: BaseModel | None = type(now).model_validate(recorded[key])
    except ValidationError:
        before = None
    changed = [field for field in type(now).model_fields if getattr(before, field, None) != getattr(now, field)]
    if changed:
        raise BadInput(
            f"{folder} was prepared with another {' and '.join(f'{key}.{field}' for field in changed)} than the "
            "settings have now; put them into params.yaml and run `dvc repro`, or set them back"
        )


def _model_checked(settings: Settings) -> Path:
    """The file that says that this check passed before: it costs the seconds that torch and transformers take."""
    reads = {
        "config": file_sha256(settings.base_folder / "config.json"),
        "target_modules": settings.finetuning.lora.target_modules,
        "tied": "refused",  # what passed before it was is checked again
        **({"held": True} if settings.merging.hold else {}),
        "versions": [version(name) for name in ("transformers", "peft")],
    }
    return settings.store / "checked" / digest(reads)


def check_model(settings: Settings) -> None:
    """Put the adapter on a base model without weights: PEFT itself says whether the modules exist and can have one."""
    check_architecture(settings.base_folder)
    wanted = settings.finetuning.lora.target_modules
    if wanted == "all-linear":
        return
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    from recall.running_order import tied_groups

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(settings.base_folder))
        tied = [group for group in tied_groups(model).values() if len(group) > 1]
        try:
            with warnings.catch_warnings(action="ignore"):  # it recommends for tied weights what is refused below
                inject_adapter_in_model(LoraConfig(r=1, target_modules=wanted), model)
        except (ValueError, re.error) as error:
            last = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "weight")})
            raise BadInput(
                f"finetuning.lora.target_modules ({wanted!r}) cannot be used with the base model "
                f"({' '.join(str(error).split())[:200]}); it has {', '.join(last)}"
            ) from error
    adapted = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    for group in tied:
        for name in adapted.intersection(group):
            other = next(part for part in group if part != name)
            raise BadInput(
                f"finetuning.lora.target_modules ({wanted!r}) adapts {name}, which is {other} too: PEFT would train "
                "one apart from the other, and a merge has one tensor for both; name neither"
            )
    if settings.merging.hold:
        head = model.get_output_embeddings()
        for name, part in model.named_modules():
            linear = isinstance(part, LoraLayer) and isinstance(part.base_layer, torch.nn.Linear | Conv1D)
            if isinstance(part, LoraLayer) and (part is head or not linear):
                raise BadInput(
                    f"finetuning.lora.target_modules names {name}, which leaves no moments, so merging.hold cannot "
                    "hold it; name linear maps of the blocks alone, or set hold to 0"
                )


def check_samples(settings: Settings) -> None:
    """Raise BadInput where a learning task gives fewer samples to choose from than are to be chosen."""
    if settings.sampling.source == "generated":
        return
    if settings.sampling.file is not None:
        samples = len(read_samples(settings.sampling.file)[: settings.sampling.candidates])
        if samples < settings.sampling.clusters:
            raise BadInput(
                f"{settings.sampling.file} gives {samples} different samples, fewer than sampling.clusters "
                f"({settings.sampling.clusters}); lower that, or give more"
            )
        return
    for name in settings.stream.learning_tasks:
        lines = json_lines(settings.task_folder(name) / "train.jsonl")
        prompts = len({json.loads(line)["prompt"] for line in lines})
        samples = min(prompts, settings.sampling.candidates or prompts)
        if samples < settings.sampling.clusters:
            raise BadInput(
                f"learning task {name} gives {samples} samples (different prompts) to choose from, fewer than "
                f"sampling.clusters ({settings.sampling.clusters}); lower that, or give more rows"
            )
