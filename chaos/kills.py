"""kill -9 of a run, alone or with Prefect's ephemeral server, at random instants over its whole duration."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from random import Random

from chaos.bench import Bench, Victim, ended, kill_group, wait_or_over

KILLS = 20


def kill(bench: Bench, random: Random, number: int) -> Victim:
    """Kill number n in the n-th twentieth of the run; the odd ones leave the ephemeral server alive, as the OOM killer
    would."""
    victim = bench.fresh(f"kill {number}")
    seconds = (number - 1 + random.random()) / KILLS * bench.seconds
    # On a busy machine one run is faster than another: what was over too soon is broken earlier.
    while True:
        process = victim.start()
        if wait_or_over(process, seconds):
            break
        seconds *= 0.9
        victim = bench.fresh(f"kill {number} again")
    if number % 2:
        process.send_signal(signal.SIGKILL)
        process.wait()
    else:
        kill_group(process)
    return victim


def first_start(bench: Bench, random: Random, share: float) -> Victim:
    """Kill a run while MLflow's and Prefect's databases are made for the first time."""
    victim = bench.fresh("first start", "unused")
    process = victim.start()
    if wait_or_over(process, bench.seconds * share):
        kill_group(process)
    return victim


def two_together(bench: Bench, random: Random) -> Victim:
    """Start the same command twice at once; both must end well."""
    victim = bench.fresh("two together")
    for code, output in map(ended, [victim.start(), victim.start()]):
        assert code == 0, output
    return victim


def killed_beside_another(bench: Bench, random: Random) -> Victim:
    """Kill one of two runs of the same stream; the other goes on."""
    victim = bench.fresh("killed beside another")
    killed, survivor = victim.start(), victim.start()
    wait_or_over(killed, bench.seconds * random.uniform(0.5, 0.9))
    kill_group(killed)
    code, output = ended(survivor)
    assert code == 0, output
    return victim


FAULTS: dict[str, Callable[[Bench, Random], Victim]] = {
    **{f"kill -9, {number} of {KILLS}": partial(kill, number=number) for number in range(1, KILLS + 1)},
    "kill -9 while databases are first made, early": partial(first_start, share=0.25),
    "kill -9 while databases are first made, later": partial(first_start, share=0.45),
    "two runs started together": two_together,
    "one of two runs killed": killed_beside_another,
}
