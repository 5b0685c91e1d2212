"""The workers of a Dask cluster that stages are sent to, by Prefect's own task runner (docs/distributed.md)."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recall.errors import BadInput, Failed, one_line
from recall.progress import console
from recall.runner_settings import RunnerSettings
from tasks.machine import environment

if TYPE_CHECKING:
    from prefect import Task
    from prefect_dask.task_runners import DaskTaskRunner

SECONDS_TO_CONNECT = 20
# What the workers have to have in common, and the process that sends the stages need not: it runs none of them.
GPU, FAST = "the GPU", "the fast number type"


@dataclass
class Workers:
    """A flow run's workers; they are connected to, and checked, when the first stage is sent."""

    settings: RunnerSettings
    threads: int
    store: Path
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    asked: dict[str, Any] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def submit(self, task: Task[..., Any], **parameters: Any) -> Callable[[], Any]:
        """Send a task; returns what waits for its result.

        Raises:
            BadInput: there is no such cluster, or one of its workers cannot do the work.
            Failed: of the returned function, where workers died again and again over this task, or the scheduler did.
        """
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        future = self._runner.submit(task, parameters=parameters)

        def wait() -> Any:
            try:
                return future.result()
            except KilledWorker as error:
                raise Failed(f"the Dask workers died over {task.name} ({one_line(error)}); see their logs") from error
            except FutureCancelledError as error:
                raise Failed(
                    f"the connection to the Dask scheduler was lost while {task.name} ran; what is done is kept: the "
                    "same command goes on from there"
                ) from error

        return wait

    @cached_property
    def _runner(self) -> DaskTaskRunner:
        import distributed  # noqa: F401 - sets its loggers up
        from prefect.settings import PREFECT_API_URL, temporary_settings
        from prefect_dask.task_runners import DaskTaskRunner

        # A lost connection is ours to say; it would show a traceback of its reconnecting.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        # Without a server of its own the run has an embedded one, and each worker would start another.
        self.stack.enter_context(temporary_settings({PREFECT_API_URL: _api_url()}))
        # One task at a time in a process: it holds one model, and has torch's threads for itself.
        local = {"n_workers": self.settings.workers, "threads_per_worker": 1, "dashboard_address": None}
        runner = DaskTaskRunner(
            address=self.settings.address,
            cluster_kwargs=None if self.settings.address else local,
            client_kwargs={"timeout": SECONDS_TO_CONNECT},
        )
        self.stack.enter_context(runner)
        try:
            runner.client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
        except (OSError, TimeoutError) as error:
            raise BadInput(
                f"no Dask worker at runner.address {self.settings.address} ({one_line(error)}); start `dask scheduler` "
                "and `dask worker`, or set runner.kind to local"
            ) from error
        _check(runner.client, self.store)
        return runner


_workers: ContextVar[Workers | None] = ContextVar("workers", default=None)


@contextmanager
def workers(settings: RunnerSettings, threads: int, store: Path) -> Iterator[None]:
    """Inside, stages run where `settings` say; without a cluster, in this process.

    Args:
        threads: torch's threads in every worker.
        store: the store's folder, which every worker must see.
    """
    if settings.kind == "local":
        yield
        return
    found = Workers(settings, threads, store)
    token = _workers.set(found)
    try:
        with found.stack:
            yield
    finally:
        _workers.reset(token)


def current() -> Workers | None:
    """The workers that stages are sent to; None where they run in this process."""
    return _workers.get()


def worker_name() -> str | None:
    """The name of the Dask worker that this process is, or None."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return str(get_worker().name)
    except ValueError:
        return None


def _api_url() -> str:
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    assert context is not None, "stages are sent to workers from a flow run"
    return str(context.client.api_url)


def _check(client: Any, store: Path) -> None:
    """Raise BadInput unless every worker sees the store and has this process's versions."""
    mine, probe = _versions(), store / f".seen-{uuid.uuid4().hex}"
    store.mkdir(parents=True, exist_ok=True)
    probe.write_text("")
    try:
        found = client.run(_look, probe)
    finally:
        probe.unlink()
    first = next(iter(found.values()))[-1]
    for name, threads, sees, versions in found.values():
        if threads != 1:
            raise BadInput(f"Dask worker {name} runs {threads} tasks at once; start it with --nthreads 1")
        if not sees:
            raise BadInput(
                f"Dask worker {name} does not see the store {store}; put it on a file system that all machines share, "
                "under one path"
            )
        for package, version in versions.items():
            of, other = (first, "the first worker") if package in (GPU, FAST) else (mine, "this process")
            if version != of[package]:
                raise BadInput(
                    f"Dask worker {name} has {package} {version} and {other} {of[package]}; results would differ"
                )
    names = ", ".join(sorted(str(name) for name, *_ in found.values()))
    console.print(f"Dask workers: {names}", highlight=False, soft_wrap=True)


def _look(probe: Path, dask_worker: Any) -> tuple[str, int, bool, dict[str, str]]:
    return str(dask_worker.name), dask_worker.state.nthreads, probe.exists(), _versions()


def _versions() -> dict[str, str]:
    """What bit-identical results take: the same libraries, and a machine that sums the same way in the same type."""
    found = environment()
    return {
        "torch": found["torch"],
        "transformers": found["transformers"],
        "the processor type": found["cpu"],
        GPU: found["cuda"] or "none",
        FAST: found["dtype"],
    }
