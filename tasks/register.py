"""Registration: the update's metrics, artifacts and merged model go to MLflow. Never cached, safe to repeat."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from recall.errors import BadInput, Failed
from recall.lineage import Lineage, RegisteredUpdate
from tasks import registration
from tasks.records import UpdateRecord
from tasks.store import Store


def may_pass(task: Any, run: Any, state: Any) -> bool:
    """A server or a database may answer next time; bad input and a refusal of ours will not change."""
    return not isinstance(state.result(raise_on_failure=False), BadInput | Failed)


@task(
    name="register",
    task_run_name="register: {stream} update {position}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_condition_fn=may_pass,
    retry_delay_seconds=5,
)
def register(
    store: Store,
    stream: str,
    position: int,
    parent_run: str,
    record: UpdateRecord,
    lineage: Lineage,
    tags: dict[str, str],
) -> RegisteredUpdate:
    """Returns where it is; a server that is away for a moment is asked again, and nothing is registered twice."""
    return registration.register_update(store, stream, parent_run, record, lineage, tags)
