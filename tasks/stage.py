"""How a stage becomes a cached Prefect task: fingerprint, verified hit, lock, atomic publishing, JSON reference."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefect import Task
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH
from pydantic import BaseModel

from recall.progress import console
from tasks.fingerprints import StageFingerprint, fingerprint, source_digest, stable
from tasks.refs import Ref
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
            return _read_ref(store, kind, key, ref)

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
            if damage and (store.folder(kind, key).exists() or _known_to_prefect(key)):
                console.print(f"[yellow]warning[/]: {damage}; {name} {label} is made again", highlight=False)
            run = task.with_options(task_run_name=f"{name}: {label}", refresh_cache=damage is not None)
            found: R = run(store, label, inputs)
            return found.at(store.root)  # type: ignore[return-value]

        return call

    return decorate


def _known_to_prefect(key: str) -> bool:
    return (Path(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value()) / key).exists()


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


def _read_ref(store: Store, kind: str, key: str, ref: type[R]) -> R:
    manifest = store.manifest(kind, key)
    assert manifest is not None
    path = store.folder(kind, key)
    found = ref.model_validate(
        {"kind": kind, "fingerprint": key, "path": path, "sha256": manifest["sha256"], **manifest["fields"]}
    )
    return found.at(store.root)  # type: ignore[return-value]


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
