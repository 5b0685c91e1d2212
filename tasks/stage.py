"""How a stage becomes a cached Prefect task: fingerprint, verified hit, lock, atomic publishing, JSON reference."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefect import Task
from pydantic import BaseModel
from rich.markup import escape

from recall.errors import Failed
from recall.progress import console
from tasks import prefect_results
from tasks.fingerprints import StageFingerprint, fingerprint, source_digest, stable
from tasks.refs import CheckpointRef, Ref
from tasks.store import Store, seal

R = TypeVar("R", bound=Ref)


@dataclass(frozen=True)
class Job:
    """Where a stage writes: what it leaves in `out` becomes the artifact; `work` survives a kill, then goes."""

    out: Path
    work: Path
    label: str


def stage(kind: str, ref: type[R]) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., R]]:
    """Make a cached Prefect task of `body(job, **inputs)`, which writes files and returns the fields of its `ref`.

    The task is called as `task(store, label, **inputs)`; `label` is for people and not part of the key. A cached
    result whose files are missing or damaged is made again, with a warning. An artifact that is whole but unknown to
    Prefect (its database or results were lost) is taken as it is.

    Bodies import what is heavy themselves: a run with nothing new to do never waits for torch.
    """

    def decorate(body: Callable[..., dict[str, Any]]) -> Callable[..., R]:
        name, code = body.__name__, source_digest(body.__module__)

        def make(store: Store, label: str, inputs: dict[str, Any]) -> R:
            key = fingerprint(name, code, inputs)
            with store.lock(key):
                if store.damage(kind, key) is not None:
                    _publish(store, kind, key, label, body, inputs)
                shutil.rmtree(store.work(key), ignore_errors=True)
            return _read_ref(store, kind, key, ref, inputs)

        task = Task(
            make,
            name=name,
            cache_policy=StageFingerprint(stage=name, code=code),
            persist_result=True,
            result_serializer="json",
        )

        @functools.wraps(body)
        def call(store: Store, label: str, **inputs: Any) -> R:
            key = fingerprint(name, code, inputs)
            damage = store.damage(kind, key)
            if damage and (store.folder(kind, key).exists() or prefect_results.exists(key)):
                console.print(f"[yellow]warning[/]: {escape(damage)}; {name} {label} is made again", highlight=False)
            trusted = damage is None and prefect_results.holds(key, _read_ref(store, kind, key, ref, inputs))
            if not trusted:
                prefect_results.forget(key)
            run = task.with_options(task_run_name=f"{name}: {label}", refresh_cache=not trusted)
            found: R = run(store, label, inputs)
            return _here(found, store, inputs)

        return call

    return decorate


def _publish(
    store: Store, kind: str, key: str, label: str, body: Callable[..., dict[str, Any]], inputs: dict[str, Any]
) -> None:
    started = time.monotonic()
    work = store.work(key)
    work.mkdir(parents=True, exist_ok=True)
    with store.publishing(kind, key) as out:
        fields = body(Job(out, work, label), **inputs)
        manifest = {
            "kind": kind,
            "fingerprint": key,
            "stage": body.__name__,
            "inputs": {name: stable(value) for name, value in inputs.items()},
            "fields": {name: _recorded_field(value) for name, value in fields.items()},
            "environment": environment(),
            "seconds": round(time.monotonic() - started, 3),
        }
        seal(out, manifest)


def _read_ref(store: Store, kind: str, key: str, ref: type[R], inputs: dict[str, Any]) -> R:
    manifest = store.manifest(kind, key)
    assert manifest is not None
    own = {"kind": kind, "fingerprint": key, "path": store.folder(kind, key), "sha256": manifest["sha256"]}
    return _here(ref.model_validate(manifest["fields"] | own), store, inputs)


def _here(found: R, store: Store, inputs: dict[str, Any]) -> R:
    """The reference with this store's paths, and this run's for the base model, wherever it was recorded."""
    moved = found.at(store.root)
    bases = {base.fingerprint: base for base in _base_models(list(inputs.values()))}
    return _over(moved, bases)  # type: ignore[return-value]


def _base_models(value: Any) -> Iterator[CheckpointRef]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _base_models(item)
    elif isinstance(value, CheckpointRef):
        if value.kind == "base_model":
            yield value
        yield from _base_models(value.base)


def _over(ref: Ref, bases: dict[str, CheckpointRef]) -> Ref:
    """The same reference over one of `bases`: no manifest says where the base model lies."""
    if not isinstance(ref, CheckpointRef) or ref.base is None:
        return ref
    if ref.base.kind != "base_model":
        return ref.model_copy(update={"base": _over(ref.base, bases)})
    if ref.base.fingerprint not in bases:
        raise Failed(f"{ref.path} says that it was made over another base model than its inputs; remove that folder")
    return ref.model_copy(update={"base": bases[ref.base.fingerprint]})


@functools.cache
def environment() -> dict[str, Any]:
    """What an audit wants to know of the machine: versions, and the thread count, which changes sums on a CPU."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "cpu_model": _cpu_model(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }


def _cpu_model() -> str:
    """As Linux names it, or what the platform says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _recorded_field(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
