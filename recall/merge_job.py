"""What `recall merge` does, as a library: from models that somebody names to a folder that transformers opens."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from recall.checkpoints import Checkpoint, side_files
from recall.errors import BadInput, Failed, one_line
from recall.merge_request import MergeRecord, MergeRequest
from recall.merge_settings import BY_MOMENTS, MOMENTS_FILE, TAKES_WEIGHTS
from recall.merge_weights import GivenWeights, Weighing, read_weights, weigh_models
from recall.model_card import model_card
from recall.model_sources import check_alike, find_models, warnings_of
from recall.tensor_files import weight_files

if TYPE_CHECKING:
    import torch


def merge_models(request: MergeRequest) -> MergeRecord:
    """Merge `request.models` into `request.out`: weights, config, tokenizer, `recall.json` and a model card.

    Raises:
        BadInput: the models do not fit each other, or the samples, the weights or the folder cannot be used.
        Failed: the folder cannot be written. In either case `request.out` does not exist afterwards.
    """
    members = find_members(request)
    with _digests(request, members) as digests, _publishing(request.out) as partial, _torch_threads(request):
        check_members(request, members)
        given = read_weights(request.weights) if request.weights else None
        layers, tensor_layers = _layers(request, given, members[0])
        if given:
            by_moments = request.method if request.method in BY_MOMENTS else None
            _check_rows(given.weights, layers, len(members), by_moments)
        weighing = weigh_models(request, members, len(layers), given)
        error = _write(request, members, np.array(weighing.weights), tensor_layers, partial)
        merged_loss, warnings = _check_merged(request, members, weighing, partial)
        record = MergeRecord(
            layers=layers,
            models=request.models,
            weights=weighing.weights,
            similarities=weighing.similarities,
            sigma=weighing.sigma,
            settings=request.model_dump(mode="json", exclude={"models", "out"}),
            inputs=[
                {path.name: digests[path].result() for path in _files(member, request)} for member in members if digests
            ],
            samples_sha256=digests[request.samples].result() if digests and request.samples else None,
            tensor_layers=tensor_layers,
            samples=weighing.count,
            losses=weighing.losses,
            merged_loss=merged_loss,
            adapter_error=error,
            warnings=[*warnings_of(request.models, members), *warnings],
        )
        (partial / "recall.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
        (partial / "README.md").write_text(model_card(record, request.out.name), encoding="utf-8")
    return record


def find_members(request: MergeRequest) -> list[Checkpoint]:
    """The models of a request, compared by their configs and tokenizers.

    Raises:
        BadInput: options exclude each other, the device is not there, a model cannot be found, or the models are of
            different kinds.
    """
    request.check_consistent()
    _device(request)
    members = find_models(request.models)
    check_alike(members)
    return members


def _device(request: MergeRequest) -> torch.device | None:
    if request.device == "cpu":
        return None
    from recall.devices import find_device

    return find_device(request.device)


def check_members(request: MergeRequest, members: Sequence[Checkpoint]) -> None:
    """Check all that headers can tell, before anything slow starts.

    Raises:
        BadInput: a file is damaged, the tensors differ, an adapter does not fit, moments are missing, or the memory
            that the merge may take is not enough.
        Failed: there is no room for the output.
    """
    # Imported here, as below: it takes torch, and the files' digests are computed meanwhile.
    from recall.pool import Pool

    pool = Pool(members)
    pool.close()
    if request.as_adapter:
        from recall.as_adapter import check_adapters

        check_adapters(pool)
    else:
        pool.refuse_tied()
    if request.method in BY_MOMENTS:
        from recall.methods import moment_files
        from recall.moments import read_moments
        from recall.regmean import check_fit

        moments = {path: read_moments(path) for path in moment_files(members)}
        for path, found in moments.items():
            check_fit(pool, path, found, next(iter(moments.values())))
    if request.max_memory or request.device != "cpu":
        from recall.chunks import fit_lanes
        from recall.methods import held_memory, moment_files

        held = held_memory(request.method, len(members), moment_files(members)[0], request.threads)
        fit_lanes(pool, request.threads, request.max_memory, held, _device(request))
    if not request.as_adapter:
        _check_room(request.out, sum(spec.nbytes for spec in pool.specs.values()))


@contextmanager
def _digests(request: MergeRequest, members: Sequence[Checkpoint]) -> Iterator[dict[Path, Future[str]]]:
    """The SHA-256 of every file that counts, computed once, and on cores that are free; given up on an error."""
    paths = dict.fromkeys(path for member in members for path in _files(member, request))
    if request.samples:
        paths[request.samples] = None
    # Models that are run on samples take every core for themselves.
    free = 1 if request.samples or request.generate else request.threads or len(os.sched_getaffinity(0))
    stopped = threading.Event()
    with ThreadPoolExecutor(free) as executor:
        try:
            yield {path: executor.submit(_sha256, path, stopped) for path in paths if request.hash_inputs}
        except BaseException:
            stopped.set()
            raise


def _files(member: Checkpoint, request: MergeRequest) -> list[Path]:
    """What is read of a model: weights, config and tokenizer, an adapter's base's where it is one, and its moments."""
    base = (member.base or member).folder
    paths = [*weight_files(base), *side_files(base)]
    if member.base:
        paths += [*weight_files(member.folder), member.folder / "adapter_config.json"]
    if request.method in BY_MOMENTS:
        paths.append(member.folder / MOMENTS_FILE)
    return [path for path in paths if path.is_file()]


def _sha256(path: Path, stopped: threading.Event) -> str:
    digest, buffer = hashlib.sha256(), bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while (size := file.readinto(buffer)) and not stopped.is_set():
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()


def _check_room(out: Path, needed: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise Failed(
            f"{out} needs {needed / 1e9:.1f} GB, but {parent} has {free / 1e9:.1f} GB left; choose another disk"
        )


@contextmanager
def _torch_threads(request: MergeRequest) -> Iterator[None]:
    """The threads asked for while models are run on samples; afterwards the caller's again."""
    if request.threads is None or not (request.samples or request.generate):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _publishing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` if all goes well, and goes if not.

    Its name is always the same, so that the next merge into `out` clears what a killed one left; a lock, which dies
    with its process, tells that from a merge that is still at it.
    """
    partial, lock = out.parent / f".{out.name}.partial", FileLock(out.parent / f".{out.name}.lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BadInput(f"{out} is being made by another process; wait for it, or choose another --out") from error
    except OSError as error:
        raise BadInput(f"{out.parent} cannot be written ({error.strerror}); choose another --out") from error
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        os.replace(partial, out)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Failed(f"{out} was not made ({where}{error.strerror or one_line(error)})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        # While it is held: whoever opened the file meanwhile sees that it has no name any more, and opens it again.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _check_rows(
    weights: Sequence[Sequence[float]], layers: Sequence[str], models: int, positive: str | None = None
) -> None:
    if len(weights) != len(layers):
        raise BadInput(f"the weights have {len(weights)} rows, the models {len(layers)} layers (with the embeddings)")
    for layer, row in zip(layers, weights, strict=True):
        if len(row) != models or abs(sum(row) - 1) > 1e-6 or not np.isfinite(row).all():
            raise BadInput(f"the weights of {layer} are {row}; give {models} numbers, a model each, that sum to 1")
        if positive and min(row) < 0:
            raise BadInput(f"the weights of {layer} are {row}; --method {positive} takes none below 0")


def _layers(request: MergeRequest, given: GivenWeights | None, first: Checkpoint) -> tuple[list[str], dict[str, int]]:
    """The layers' names, and the layer of every tensor; from a `recall.json` if it has them, else from the model."""
    from recall.pool import Pool

    pool = Pool([first])
    pool.close()
    if given and given.layers and given.tensor_layers and given.tensor_layers.keys() == pool.specs.keys():
        for name, row in given.tensor_layers.items():
            if not 0 <= row < len(given.layers):
                raise BadInput(
                    f"weights {request.weights} put {name} into layer {row}, and have layers 0 to "
                    f"{len(given.layers) - 1}; give a recall.json as it was written"
                )
        return given.layers, given.tensor_layers
    # Imported here: it takes transformers, which takes longer than most merges.
    from recall.structure import checkpoint_layers

    layers = checkpoint_layers(first, modules=request.weighting.granularity == "module")
    return layers.names, {name: layers.of(name) for name in pool.specs}


def _write(
    request: MergeRequest,
    members: Sequence[Checkpoint],
    weights_LK: np.ndarray,
    tensor_layers: dict[str, int],
    out: Path,
) -> float | None:
    """Write the model or the adapter; returns the adapter's relative error."""
    if request.as_adapter:
        from recall.as_adapter import write_adapter
        from recall.pool import Pool

        pool = Pool(members)
        try:
            return write_adapter(pool, weights_LK, tensor_layers.__getitem__, out, request.rank)
        finally:
            pool.close()
    from recall.methods import merge_with

    merge_with(
        request.method,
        members,
        out,
        request.merging,
        weights_RK=weights_LK if request.method in TAKES_WEIGHTS else None,
        row_of=tensor_layers.__getitem__,
        threads=request.threads,
        max_memory=request.max_memory,
        device=_device(request),
    )
    return None


def _check_merged(
    request: MergeRequest, members: Sequence[Checkpoint], weighing: Weighing, out: Path
) -> tuple[float | None, list[str]]:
    if not request.check or not weighing.count:
        return None, []
    from recall.sanity import check_merged

    merged = Checkpoint(out, members[0].base or members[0]) if request.as_adapter else Checkpoint(out)
    return check_merged(merged, weighing, request.representations)
