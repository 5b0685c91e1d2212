"""kill -9 of a server that a run depends on, at a random instant; it is started again, and so is the command."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from random import Random

from servers import Servers, missing

from chaos.bench import Bench, Victim, ended, wait_or_over
from chaos.disks import Skipped

# The servers are one set for all faults, and a fault has them for itself.
ALONE = threading.Lock()


def running(bench: Bench) -> Servers:
    """The servers of docs/production.md, started once for all faults."""
    if bench.servers is None:
        if missing():
            raise Skipped(missing())
        bench.servers = Servers()
        bench.servers.set_up()
        # The checks ask the same registry.
        os.environ.update({name: value for name, value in bench.servers.clients.items() if "PREFECT" not in name})
    return bench.servers


def server_killed(bench: Bench, random: Random, name: str, share: float) -> Victim:
    """Kill one server and all its processes at `share` of the run, and start it again once the run has ended or given
    up waiting."""
    with ALONE:
        servers = running(bench)
        victim = bench.fresh(f"{name} killed")
        victim.of_its_own_stream(f"{name}-{share:.2f}")
        victim.project.environment |= servers.clients | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
        process = victim.start()
        assert wait_or_over(process, bench.seconds * (share + random.uniform(-0.05, 0.05))), "over too soon"
        servers.kill(name)
        wait_or_over(process, random.uniform(0, 20))
        servers.start(name)
        ended(process)
        code, output = victim.finish()
        assert code == 0, output
        return victim


FAULTS: dict[str, Callable[[Bench, Random], Victim]] = {
    f"{title} killed at {share:.0%} of the run": partial(server_killed, name=name, share=share)
    for name, title in (("prefect", "Prefect's server"), ("mlflow", "MLflow's server"), ("postgres", "PostgreSQL"))
    for share in (0.6, 0.85)
}
