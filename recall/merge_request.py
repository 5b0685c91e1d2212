"""What somebody asks of `recall merge`, and the `recall.json` that it leaves."""

from __future__ import annotations

from pathlib import Path

from pydantic import ByteSize, Field, ValidationError

from recall.errors import BadInput
from recall.merge_settings import FROM_SAMPLES, TAKES_WEIGHTS, WEIGHTED, MergingSettings, MethodName
from recall.results import Frozen, MergeWeights
from recall.seeds import SEEDS
from recall.settings import RepresentationSettings, WeightingSettings


class MergeRequest(Frozen):
    """What to merge, and how; the last model is the newest, task vectors start from the first.

    `samples` (JSON lines with `text` or `prompt`), `generate` (texts that the newest model makes up) or `weights` (a
    `recall.json`, or any JSON with `weights`, a row a layer, embeddings first) say how much of each model goes into
    each layer; samples beside given weights are only what the result is checked on. Of the samples the `clusters`
    typical ones are used, or all where it is null.
    """

    models: list[str] = Field(min_length=2)
    out: Path
    method: MethodName = "recall"
    samples: Path | None = None
    generate: int | None = Field(default=None, ge=2)
    weights: Path | None = None
    clusters: int | None = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0, lt=SEEDS)
    weighting: WeightingSettings = WeightingSettings()
    merging: MergingSettings = MergingSettings()
    representations: RepresentationSettings = RepresentationSettings()
    max_tokens: int | None = Field(default=None, gt=0, description="cut longer samples on the left; null refuses them")
    as_adapter: bool = False
    rank: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1, le=64)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where weighted sums are computed")
    max_memory: ByteSize | None = Field(default=None, gt=0)
    hash_inputs: bool = True
    check: bool = True

    def check_consistent(self) -> None:
        """Check what the options say of each other, before anything is opened.

        Raises:
            BadInput: two that exclude each other, or one that lacks another.
        """
        sources = [name for name in ("samples", "generate", "weights") if getattr(self, name) is not None]
        if self.generate and len(sources) > 1:
            other = next(name for name in sources if name != "generate")
            raise BadInput(f"--generate and --{other} exclude each other; give one of them")
        if self.generate and self.clusters and self.generate < self.clusters:
            raise BadInput(f"--generate {self.generate} gives fewer texts than --clusters {self.clusters}; raise it")
        if self.weights and self.method not in TAKES_WEIGHTS:
            raise BadInput(f"--method {self.method} takes no weights; leave out --weights, or the method")
        if self.method in FROM_SAMPLES and not sources:
            raise BadInput(f"--method {self.method} needs --samples, --generate or --weights to weigh the models by")
        if self.method == "slerp" and len(self.models) != 2:
            raise BadInput(f"SLERP goes between two models, but {len(self.models)} were given; choose another method")
        if self.as_adapter and self.max_memory:
            raise BadInput("--max-memory bounds the merge of full weights; an adapter needs what its factors take")
        if self.rank and not self.as_adapter:
            raise BadInput("--rank is the rank of a merged adapter; give --as-adapter too, or leave it out")
        if self.as_adapter and self.method not in WEIGHTED:
            raise BadInput(f"--method {self.method} yields no low-rank difference; leave out --as-adapter")
        if self.device != "cpu" and (self.as_adapter or self.method not in WEIGHTED):
            what = "--as-adapter" if self.as_adapter else f"--method {self.method}"
            raise BadInput(f"{what} is computed on the CPU alone; leave out --device {self.device}")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise BadInput(f"{self.out} is there already; remove it, or choose another --out")


class MergeRecord(MergeWeights):
    """`recall.json`: how a merged model was made, enough to make it again.

    `tensor_layers` is the layer of every tensor; `inputs` has the SHA-256 of every file that counts, model by model;
    `samples` are the typical ones that were used; `losses` each model's loss on them, and `merged_loss` the result's;
    `adapter_error` is the relative error of the difference where it was cut to a lower rank.
    """

    settings: dict[str, object]
    inputs: list[dict[str, str]]
    samples_sha256: str | None = None
    tensor_layers: dict[str, int]
    samples: int | None = None
    losses: list[float] = Field(default=[])
    merged_loss: float | None = None
    adapter_error: float | None = None
    warnings: list[str] = Field(default=[])


def merge_request(**fields: object) -> MergeRequest:
    """A request out of a person's words.

    Raises:
        BadInput: a value does not fit; the first such is named.
    """
    try:
        return MergeRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        option = next(str(part) for part in first["loc"] if part not in ("weighting", "merging", "representations"))
        given = "" if option == "models" else f" {first['input']}"
        option = {"models": "model"}.get(option, option).replace("_", "-")
        raise BadInput(f"--{option}{given}: {first['msg'][0].lower() + first['msg'][1:]}") from error
