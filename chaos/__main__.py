"""`python -m chaos [WORD ...]`: every fault whose name has one of the words in it (all without words), and a table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from chaos import corruption, disks, kills, servers_killed, workers_killed
from chaos.bench import Bench, Victim, end_orphans
from chaos.checks import problems
from recall.progress import console

FAULTS: dict[str, Callable[[Bench, Random], Victim]] = {
    **kills.FAULTS,
    **disks.FAULTS,
    **corruption.FAULTS,
    **servers_killed.FAULTS,
    **workers_killed.FAULTS,
}


@dataclass(frozen=True)
class Verdict:
    """What became of one fault: survived, lost or skipped, and why."""

    fault: str
    verdict: str
    seconds: float
    problems: list[str]


def put_to_the_test(bench: Bench, name: str, seed: int) -> Verdict:
    """Make the fault, run the same command again, and look for anything lost."""
    started = time.monotonic()
    verdict = "survived"
    try:
        victim = FAULTS[name](bench, Random(f"{seed} {name}"))
        code, output = victim.finish()
        victim.bring_out()
        found = problems(victim, bench.undisturbed) if code == 0 else [f"exit code {code}: {output[-1500:]}"]
    except disks.Skipped as why:
        verdict, found = "skipped", [str(why)]
    except Exception as error:  # a fault that cannot even be made must not end the others
        found = [f"{type(error).__name__}: {str(error)[-1500:]}"]
    if found and verdict != "skipped":
        verdict = "lost"
    console.print(f"{verdict}: {name}", *found, sep="\n  ", markup=False, highlight=False)
    return Verdict(name, verdict, round(time.monotonic() - started, 1), found)


def show(verdicts: list[Verdict], undisturbed: float) -> None:
    """The table for people."""
    table = Table(title=f"{len(verdicts)} faults; an undisturbed run takes {undisturbed:.0f} s")
    for heading in ("fault", "verdict", "seconds", "what was lost"):
        table.add_column(heading)
    for verdict in verdicts:
        table.add_row(verdict.fault, verdict.verdict, f"{verdict.seconds:.0f}", "\n".join(verdict.problems)[:400])
    out = Console(width=None if sys.stdout.isatty() else 120)
    out.print(table)
    count = {word: sum(v.verdict == word for v in verdicts) for word in ("survived", "lost", "skipped")}
    out.print(f"tried {len(verdicts)}: " + ", ".join(f"{word} {number}" for word, number in count.items()))


def main() -> int:
    """Exit code 1 where anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="only faults whose name contains one of these")
    parser.add_argument("--seed", type=int, default=0, help="of the instants, places and bits (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="how many faults at a time (default 2)")
    parser.add_argument("--out", type=Path, default=Path("chaos.jsonl"), help="JSON lines, one a fault")
    parser.add_argument("--list", action="store_true", help="print the faults' names")
    arguments = parser.parse_args()
    names = [name for name in FAULTS if not arguments.words or any(word in name for word in arguments.words)]
    if arguments.list:
        print("\n".join(names))
        return 0
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as room:
        bench = Bench(Path(room))
        try:
            with ThreadPoolExecutor(arguments.jobs) as pool:
                verdicts = []
                for verdict in pool.map(lambda name: put_to_the_test(bench, name, arguments.seed), names):
                    verdicts.append(verdict)
                    lines = [json.dumps(asdict(verdict)) + "\n" for verdict in verdicts]
                    arguments.out.write_text("".join(lines), encoding="utf-8")
        finally:
            bench.close()
            orphans = end_orphans(Path(room))
    show(verdicts, bench.seconds)
    console.print(f"processes that outlived their runs: {orphans}")
    return 1 if any(verdict.verdict == "lost" for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
