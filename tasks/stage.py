"""How a stage becomes a cached Prefect task: fingerprint, verified hit, lock, atomic publishing, JSON reference."""

from __future__ import annotations

import functools
import importlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from prefect import Task
from pydantic import BaseModel
from rich.markup import escape

from recall.errors import Failed
from recall.progress import console
from tasks import prefect_results
from tasks.fingerprints import StageFingerprint, fingerprint, source_digest, stable
from tasks.machine import environment
from tasks.refs import CheckpointRef, Ref, contents
from tasks.remote import Fits, bring, settle, share, unfit
from tasks.store import Store, seal
from tasks.workers import current, worker_name

_ONE_AT_A_TIME = threading.Lock()  # a process has one model in memory, and torch's threads

R = TypeVar("R", bound=Ref)


@dataclass(frozen=True)
class Job:
    """Where a stage writes: what it leaves in `out` becomes the artifact; `work` survives a kill, then goes."""

    out: Path
    work: Path
    label: str


class Stage(Generic[R]):
    """A stage as a cached Prefect task; see `stage`. It is pickled by its name, so a worker runs its own code."""

    def __init__(self, kind: str, ref: type[R], on_workers: bool, body: Callable[..., dict[str, Any]]) -> None:
        functools.update_wrapper(self, body)
        self.kind, self.ref, self.on_workers, self.body = kind, ref, on_workers, body
        self.name, self.code = body.__name__, source_digest(body.__module__)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return _stage_named, (self.body.__module__, self.name)

    def __call__(self, store: Store, label: str, **inputs: Any) -> R:
        """The artifact, made or found."""
        return self.submit(store, label, **inputs).result()

    def submit(self, store: Store, label: str, **inputs: Any) -> Pending[R]:
        """Ask for the artifact; only on a cluster does it return before the work is done.

        A flow run asks its workers for one artifact once, however often it is needed.
        """
        key = fingerprint(self.name, self.code, inputs)
        cluster = current() if self.on_workers else None
        if cluster is None:
            task = self._task(label, self._prepare(store, label, key, inputs))
            found = _here(task(store, label, inputs), store, inputs)
            return Pending(lambda: found)
        if key not in cluster.asked:
            task = self._task(label, self._prepare(store, label, key, inputs))
            where = {"code": self.code, "run": cluster.run, "threads": cluster.threads}
            wait = cluster.submit(task, store=store, label=label, inputs=inputs, on=where)
            cluster.asked[key] = Pending(lambda: self._arrived(store, label, inputs, wait()))
        pending: Pending[R] = cluster.asked[key]
        return pending

    def _prepare(self, store: Store, label: str, key: str, inputs: dict[str, Any]) -> bool:
        """Bring the artifact where it is at the remote alone; may Prefect give its own result of it?"""
        damage = bring(store, self.kind, key, _made_from(inputs))
        if damage is None:
            share(store, self.kind, key)  # where an earlier run could not
        if damage and (store.folder(self.kind, key).exists() or prefect_results.exists(key)):
            console.print(f"[yellow]warning[/]: {escape(damage)}; {self.name} {label} is made again", highlight=False)
        trusted = damage is None and prefect_results.holds(key, _read_ref(store, self.kind, key, self.ref, inputs))
        if not trusted:
            prefect_results.forget(key)
        return trusted

    def _task(self, label: str, trusted: bool) -> Task[..., R]:
        def make(store: Store, label: str, inputs: dict[str, Any], on: dict[str, Any] | None = None) -> R:
            return self.make(store, label, inputs, on)

        return Task(
            make,
            name=self.name,
            task_run_name=f"{self.name}: {label}",
            cache_policy=StageFingerprint(stage=self.name, code=self.code),
            refresh_cache=not trusted,
            persist_result=True,
            result_serializer="json",
        )

    def make(self, store: Store, label: str, inputs: dict[str, Any], on: dict[str, Any] | None) -> R:
        """What the Prefect task does, in this process or, with `on`, in a worker's."""
        with _ONE_AT_A_TIME:
            if on is not None:
                self._begin_on_worker(**on)
            key, fits = fingerprint(self.name, self.code, inputs), _made_from(inputs)
            with store.lock(key):
                if unfit(store, self.kind, key, fits) is not None:
                    self._publish(store, key, label, inputs)
                    settle(store, self.kind, key, fits)
                shutil.rmtree(store.work(key), ignore_errors=True)
            return _read_ref(store, self.kind, key, self.ref, inputs)

    def _publish(self, store: Store, key: str, label: str, inputs: dict[str, Any]) -> None:
        self._check_code()
        started = time.monotonic()
        work = store.make_work(key)
        with store.publishing(self.kind, key) as out:
            fields = self.body(Job(out, work, label), **inputs)
            self._check_code()
            manifest = {
                "kind": self.kind,
                "fingerprint": key,
                "stage": self.name,
                "inputs": {name: stable(value) for name, value in inputs.items()},
                "made_from": contents(list(inputs.values())),
                "fields": {name: _recorded_field(value) for name, value in fields.items()},
                "environment": environment() | {"threads": _threads(), "worker": worker_name()},
                "seconds": round(time.monotonic() - started, 3),
            }
            seal(out, manifest)

    def _check_code(self) -> None:
        """Raise Failed where the files differ from what this process began with: bodies import `recall` when they run,
        so an edit or a `git pull` meanwhile would be filed under the old code's key."""
        try:
            now = source_digest(self.body.__module__)
        except (OSError, ImportError, SyntaxError, AssertionError):  # removed, or half written
            now = ""
        if now != self.code:
            raise Failed(
                f"the code of the stage {self.name} changed while this run went on, so nothing of it is kept; leave "
                "the checkout as it is until a run ends, and run it again"
            )

    def _begin_on_worker(self, code: str, run: str, threads: int) -> None:
        """Raise Failed where the worker has other code than the flow; set its threads, which change sums on a CPU."""
        if code != self.code:
            raise Failed(
                f"Dask worker {worker_name()} has other code of the stage {self.name} than this process; "
                "bring its checkout to the same commit and start it again"
            )
        import torch

        torch.set_num_threads(threads)
        _forget_models_of_another(run)

    def _arrived(self, store: Store, label: str, inputs: dict[str, Any], found: R) -> R:
        manifest = store.manifest(self.kind, found.fingerprint) or {}
        worker = manifest.get("environment", {}).get("worker")
        console.print(
            f"{self.name} {label}: {manifest.get('seconds', 0):.1f} s on {worker}", highlight=False, soft_wrap=True
        )
        return _here(found, store, inputs)


class Pending(Generic[R]):
    """An artifact that was asked for."""

    def __init__(self, wait: Callable[[], R]) -> None:
        self._result = functools.cache(wait)

    def result(self) -> R:
        """The artifact; waits until it is there, and raises what its stage raised."""
        return self._result()


def stage(kind: str, ref: type[R], on_workers: bool = True) -> Callable[[Callable[..., dict[str, Any]]], Stage[R]]:
    """Make a cached Prefect task of `body(job, **inputs)`, which writes files and returns the fields of its `ref`.

    The task is called as `task(store, label, **inputs)`, or `task.submit(...).result()` where others can go on
    meanwhile; `label` is for people and not part of the key. A cached result whose files are missing or damaged is
    fetched from the store's remote, or made again with a warning. An artifact that is whole but unknown to Prefect (its
    database or results were lost) is taken as it is.

    Bodies import what is heavy themselves: a run with nothing new to do never waits for torch.

    Args:
        on_workers: False for what needs the working copy of this process.
    """
    return functools.partial(Stage, kind, ref, on_workers)


@functools.lru_cache(maxsize=1)
def _forget_models_of_another(run: str) -> None:
    """Once a flow run: a base model's folder may hold another model than in the run before."""
    from recall.loaded_models import forget

    forget()


def _stage_named(module: str, name: str) -> Stage[Any]:
    found: Stage[Any] = getattr(importlib.import_module(module), name)
    return found


def _made_from(inputs: dict[str, Any]) -> Fits:
    """Was an artifact made from these very bytes? Older manifests do not say, and are believed."""
    now = contents(list(inputs.values()))
    return lambda manifest: bool(manifest.get("made_from", now) == now)


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


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _recorded_field(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
