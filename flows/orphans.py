"""What a killed run leaves with Prefect: its ephemeral server, and a flow run that stays Running for ever."""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Inherited by all that a run starts: the run's process id.
MARK = "RECALL_RUN"


def end_orphaned_servers() -> None:
    """End the servers of runs that are dead, and mark what this process will start; nothing where there is no /proc."""
    for process in Path("/proc").glob("[0-9]*"):
        environment = _environment(process)
        run = environment.get(MARK)
        if run and environment.get("PREFECT__SERVER_EPHEMERAL") and not Path("/proc", run).exists():
            with suppress(OSError):
                os.kill(int(process.name), signal.SIGTERM)
    os.environ[MARK] = str(os.getpid())


OF_THIS_MACHINE = f"process:{platform.node()}:"


def process_tag() -> str:
    """The tag of this process's flow runs: its machine and its id."""
    return f"{OF_THIS_MACHINE}{os.getpid()}"


@contextmanager
def flow_of_this_process() -> Iterator[None]:
    """Inside, a flow run says whose it is, so that the next one can tell that it was killed; those before are told."""
    from prefect import tags

    with tags(process_tag()):
        end_forgotten_runs()
        yield


@contextmanager
def untagged_tasks() -> Iterator[None]:
    """Inside a flow: its tasks do not inherit that tag.

    Before each task Prefect asks its server for the limits of every tag, and where the embedded one is just writing
    down the end of the task before, its database is locked and the question is put again 2 s later.
    """
    from prefect.context import TagsContext

    tags = TagsContext.get().current_tags
    with TagsContext(current_tags={tag for tag in tags if not tag.startswith(OF_THIS_MACHINE)}):
        yield


def end_forgotten_runs() -> None:
    """Mark as crashed the flow runs that say Running while their process, on this machine, is gone."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    running = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=running):
            processes = [int(tag.rpartition(":")[2]) for tag in run.tags if tag.startswith(OF_THIS_MACHINE)]
            if processes and not any(map(_alive, processes)):
                client.set_flow_run_state(run.id, Crashed(message="its process was killed"), force=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _environment(process: Path) -> dict[str, str]:
    """Another process's variables; none where it is gone or another user's."""
    try:
        text = (process / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return {name: value for name, separator, value in (entry.partition("=") for entry in text.split("\0")) if separator}
