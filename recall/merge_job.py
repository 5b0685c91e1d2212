"""What `recall merge` does, as a library: from models that somebody names to a folder that transformers opens."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from recall.checkpoints import Checkpoint
from recall.errors import BadInput, one_line
from recall.model_card import model_card
from recall.model_sources import check_alike, find_models
from recall.results import Frozen, MergeWeights
from recall.settings import RepresentationSettings, WeightingSettings
from recall.tensor_files import weight_files


class MergeRequest(Frozen):
    """What to merge, and how; the last model is the newest.

    Either `samples` (JSON lines with `text` or `prompt`) or `weights` (a `recall.json`, or any JSON with `weights`, a
    row a layer, embeddings first) says how much of each model goes into each layer.
    """

    models: list[str] = Field(min_length=2)
    out: Path
    samples: Path | None = None
    weights: Path | None = None
    clusters: int | None = Field(default=20, ge=1)
    seed: int = 0
    weighting: WeightingSettings = WeightingSettings()
    representations: RepresentationSettings = RepresentationSettings()
    as_adapter: bool = False
    rank: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1, le=64)
    max_memory: ByteSize | None = None
    hash_inputs: bool = True


class MergeRecord(MergeWeights):
    """`recall.json`: how a merged model was made, enough to make it again.

    `tensor_layers` is the layer of every tensor; `inputs` has the SHA-256 of every weight file, model by model;
    `adapter_error` is the relative error of the difference where it was cut to a lower rank.
    """

    settings: dict[str, object]
    inputs: list[dict[str, str]]
    tensor_layers: dict[str, int]
    adapter_error: float | None = None
    samples: int | None = None


class _GivenWeights(BaseModel):
    model_config = ConfigDict(extra="ignore")

    weights: list[list[float]]
    layers: list[str] | None = None
    similarities: list[list[float]] = []
    sigma: list[float] = []
    tensor_layers: dict[str, int] | None = None
    samples: int | None = None


def merge_request(**fields: object) -> MergeRequest:
    """A request out of a person's words.

    Raises:
        BadInput: a value does not fit; the first such is named.
    """
    try:
        return MergeRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0] if first["loc"][0] != "weighting" else first["loc"][1]).replace("_", "-")
        given = "" if option == "models" else f" {first['input']}"
        raise BadInput(f"--{option}{given}: {first['msg'][0].lower() + first['msg'][1:]}") from error


def merge_models(request: MergeRequest) -> MergeRecord:
    """Merge `request.models` into `request.out`: weights, config, tokenizer, `recall.json` and a model card.

    Raises:
        BadInput: the models do not fit each other, or the samples, the weights or the folder cannot be used.
        Failed: the folder cannot be written. In either case `request.out` does not exist afterwards.
    """
    _check_request(request)
    members = find_models(request.models)
    check_alike(members)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor, _publishing(request.out) as partial:
        # While the libraries are imported a core is free: it reads the files once for their digests.
        digests = [executor.submit(file_digests, member) for member in members] if request.hash_inputs else []
        given = _read_weights(request.weights, len(members)) if request.weights else _weigh(request, members)
        layers, rows = _layers(given, members[0])
        _check_rows(given, layers, len(members))
        error = _write(request, members, np.array(given.weights), rows.__getitem__, partial)
        record = MergeRecord(
            layers=layers,
            models=request.models,
            weights=given.weights,
            similarities=given.similarities,
            sigma=given.sigma,
            settings=request.model_dump(mode="json", exclude={"models", "out"}),
            inputs=_results(digests),
            tensor_layers=rows,
            adapter_error=error,
            samples=given.samples,
        )
        (partial / "recall.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
        (partial / "README.md").write_text(model_card(record, request.out.name), encoding="utf-8")
    return record


def file_digests(member: Checkpoint) -> dict[str, str]:
    """SHA-256 of every weight file of a model, an adapter's base included, by file name."""
    found = {}
    for checkpoint in (member.base, member):
        for path in weight_files(checkpoint.folder) if checkpoint else []:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _check_request(request: MergeRequest) -> None:
    if (request.samples is None) == (request.weights is None):
        raise BadInput("give either --samples, to compute the weights, or --weights, to use given ones")
    if request.rank and not request.as_adapter:
        raise BadInput("--rank is the rank of a merged adapter; give --as-adapter too, or leave it out")
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise BadInput(f"{request.out} is there already; remove it, or choose another --out")


@contextmanager
def _publishing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` if all goes well, and goes if not."""
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"{out.parent} cannot be written ({error.strerror}); choose another --out") from error
    try:
        yield partial
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_weights(path: Path, models: int) -> _GivenWeights:
    try:
        return _GivenWeights.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, ValueError) as error:
        raise BadInput(f"weights {path} cannot be used ({one_line(error)}); give a recall.json") from error


def _check_rows(given: _GivenWeights, layers: list[str], models: int) -> None:
    if len(given.weights) != len(layers):
        raise BadInput(
            f"the weights have {len(given.weights)} rows, the models {len(layers)} layers (with the embeddings)"
        )
    for layer, row in zip(layers, given.weights, strict=True):
        if len(row) != models or abs(sum(row) - 1) > 1e-6 or not np.isfinite(row).all():
            raise BadInput(f"the weights of {layer} are {row}; give {models} numbers, a model each, that sum to 1")


def _layers(given: _GivenWeights, first: Checkpoint) -> tuple[list[str], dict[str, int]]:
    """The layers' names, and the layer of every tensor; from a `recall.json` if it has them, else from the model."""
    from recall.tensor_files import TensorFolder

    names = TensorFolder((first.base or first).folder).specs.keys()
    if given.layers and given.tensor_layers and given.tensor_layers.keys() == names:
        return given.layers, given.tensor_layers
    # Imported here: it takes transformers, which takes longer than most merges.
    from recall.structure import checkpoint_layers

    layers = checkpoint_layers(first)
    return layers.names, {name: layers.of(name) for name in names}


def _write(
    request: MergeRequest,
    members: Sequence[Checkpoint],
    weights_LK: np.ndarray,
    row_of: Callable[[str], int],
    out: Path,
) -> float | None:
    from recall.merging import merge
    from recall.pool import Pool

    if not request.as_adapter:
        merge(members, weights_LK, row_of, out, threads=request.threads, max_memory=request.max_memory)
        return None
    from recall.as_adapter import write_adapter

    pool = Pool(members)
    try:
        return write_adapter(pool, weights_LK, row_of, out, request.rank)
    finally:
        pool.close()


def _weigh(request: MergeRequest, members: Sequence[Checkpoint]) -> _GivenWeights:
    """RECALL's weights, from the representations of the typical samples in every model."""
    import torch

    from recall.loaded_models import loaded
    from recall.prompts import read_samples
    from recall.representations import represent
    from recall.sampling import typical_samples
    from recall.similarity import similarities
    from recall.weighting import weights

    assert request.samples is not None
    prompts = [sample.read for sample in read_samples(request.samples)]
    batch_size, max_tokens = request.representations.batch_size, request.representations.max_tokens
    if request.clusters is not None:
        with loaded(members[-1], torch.float32) as (model, tokenizer):
            last_PE = represent(
                model, tokenizer, prompts, batch_size=batch_size, max_tokens=max_tokens, last_layer_only=True,
                what="cluster",
            )[0]  # fmt: skip
        prompts = [prompts[index] for index in typical_samples(last_PE, request.clusters, request.seed)]
    hidden = []
    for name, member in zip(request.models, members, strict=True):
        with loaded(member, torch.float32) as (model, tokenizer):
            states_LPE = represent(
                model, tokenizer, prompts, batch_size=batch_size, max_tokens=max_tokens, what=f"represent {name}"
            )
            hidden.append(states_LPE)
    similarities_LK, sigma_L = similarities(np.stack(hidden), request.weighting.sigma)
    weights_LK = weights(similarities_LK, request.weighting.temperature, request.weighting.alignment_threshold)
    return _GivenWeights(
        weights=weights_LK.tolist(),
        similarities=similarities_LK.tolist(),
        sigma=sigma_L.tolist(),
        samples=len(prompts),
    )


def _results(digests: list[Future[dict[str, str]]]) -> list[dict[str, str]]:
    return [digest.result() for digest in digests]


def read_record(folder: Path) -> MergeRecord:
    """The `recall.json` of a merged model."""
    return MergeRecord.model_validate(json.loads((folder / "recall.json").read_text(encoding="utf-8")))
