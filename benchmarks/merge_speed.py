"""`recall merge` against mergekit's command and against a copy without arithmetic: time, CPU time, peak memory.

    pip install --constraint constraints.txt --editable '.[bench]'
    python benchmarks/merge_speed.py [--work /dev/shm] [--runs 5] [--small] [--device cuda]

Random models are made on the spot, 9 GB at most at a time. Whole processes run in turns, start-up included; shown are
medians of the seconds and the largest peak of memory. A disk's write-back swings, so the models belong on a tmpfs, and
are put there where there is one. With --device the merge is run there too, beside a process that only starts torch and
copies as many bytes there and back. Each merge's first output is compared with the sum of its inputs, as
merge_reference.py does; where one differs, that is all that is said.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from processes import Usage, measure

HERE = Path(__file__).parent
RECALL = [sys.executable, "-m", "flows.cli", "merge"]
DEVICE_COPY, DEVICE_MERGE = "copies to the device and back", "recall merge, on the device"
UNUSED = ("transformers", "peft", "scipy", "sklearn", "datasets", "prefect", "mlflow")

Command = Callable[[Path], list[str | Path]]


@dataclass
class Group:
    """Commands that are timed in turns on the same inputs: the `weights` by layer of `models`."""

    name: str
    commands: dict[str, Command]
    weights: Path
    models: list[Path]
    usages: dict[str, list[Usage]] = field(default_factory=dict)

    def run(self, work: Path, runs: int) -> None:
        """Measure every command `runs` times."""
        for turn in range(runs):
            for label, command in self.commands.items():
                print(f"\r{self.name}: {label}, {turn + 1} of {runs} \033[K", end="", file=sys.stderr, flush=True)
                out = work / "out"
                self.usages.setdefault(label, []).append(measure(command(out), work / "log"))
                if turn == 0 and label != "copy" and out.exists():
                    inputs = [self.weights, *self.models]
                    measure([sys.executable, HERE / "merge_reference.py", out, *inputs], work / "log")
                shutil.rmtree(out, ignore_errors=True)
        print(file=sys.stderr)


def full_models(
    work: Path, shape: str, count: int, *, everything: bool, mergekit: str | None, device: str | None = None
) -> Group:
    """`count` full models with weights by layer; `everything`: with mergekit, with hashes, and on one thread."""
    models = [work / f"model{number}" for number in range(count)]
    for number, model in enumerate(models):
        _make("write_model", model, shape, number)
    weights = _write_weights(work, shape, count)
    ours = _ours(models, weights)
    commands: dict[str, Command] = {
        "copy": lambda out: [sys.executable, HERE / "plain_copy.py", out, *models],
        "recall merge": lambda out: [*ours(out), "--no-hashes"],
    }
    if device:
        commands |= {
            DEVICE_COPY: lambda _: [sys.executable, HERE / "device_copy.py", device, *models],
            DEVICE_MERGE: lambda out: [*ours(out), "--no-hashes", "--device", device],
        }
    if everything:
        commands |= {
            "recall merge, with SHA-256 of inputs": ours,
            "recall merge, 1 thread": lambda out: [*ours(out), "--no-hashes", "--threads", "1"],
        }
        if mergekit:
            commands |= _mergekit(mergekit, work, models, weights)
    return Group(f"{count} models of {shape}", commands, weights, models)


def adapters(work: Path, shape: str, count: int) -> Group:
    """A base and `count` LoRA adapters of rank 16 over it, with weights by layer."""
    base = work / "base"
    if not base.exists():
        _make("write_model", base, shape, 0)
    members = [base, *(work / f"adapter{number}" for number in range(count))]
    for number, adapter in enumerate(members[1:]):
        if not adapter.exists():
            _make("write_adapter", adapter, base, shape, number)
    weights = _write_weights(work, shape, len(members))
    ours = _ours(members, weights)
    return Group(
        f"{count} LoRA adapter{'s' * (count > 1)} over {shape}",
        {
            "copy": lambda out: [sys.executable, HERE / "plain_copy.py", out, *members],
            "recall merge": lambda out: [*ours(out), "--no-hashes"],
        },
        weights,
        members,
    )


def start_up(work: Path, mergekit: str | None) -> Group:
    """Help, and a merge that has nothing to do."""
    group = full_models(work, "tiny", 2, everything=True, mergekit=mergekit)
    kept = ("recall merge", "mergekit")
    commands: dict[str, Command] = {"recall merge --help": lambda _: [*RECALL, "--help"]}
    commands |= {label: command for label, command in group.commands.items() if label in kept}
    return Group("start-up, 2 tiny models", commands, group.weights, group.models)


def imported_for_nothing(work: Path) -> list[str]:
    """Of the slow libraries, those that a merge by given weights imports."""
    group = full_models(work, "tiny", 2, everything=False, mergekit=None)
    command = group.commands["recall merge"](work / "out")
    done = subprocess.run([command[0], "-X", "importtime", *command[1:]], capture_output=True, text=True, check=True)
    names = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return [name for name in UNUSED if name in names]


def _ours(models: list[Path], weights: Path) -> Command:
    named = [word for model in models for word in ("--model", model)]
    return lambda out: [*RECALL, *named, "--weights", weights, "--out", out]


def _mergekit(mergekit: str, work: Path, models: list[Path], weights: Path) -> dict[str, Command]:
    """As a person would call it, and with small shards, which take it less memory."""
    config = work / "mergekit.json"
    config.write_text(json.dumps(_mergekit_config(models, json.loads(weights.read_text())["weights"])))
    # There is no tokenizer to copy; JSON is YAML.
    plain = [mergekit, config]
    options = ["--no-copy-tokenizer", "--quiet"]
    return {
        "mergekit": lambda out: [*plain, out, *options],
        "mergekit, shards of 500 MB": lambda out: [*plain, out, *options, "--out-shard-size", "500M"],
    }


def _mergekit_config(models: list[Path], weights_LK: list[list[float]]) -> dict[str, object]:
    """A slice a block. The embedding takes the first slice's weights, so an empty one stands before the blocks."""

    def slice_of(start: int, stop: int, weights_K: list[float]) -> dict[str, object]:
        pairs = zip(models, weights_K, strict=True)
        return {
            "sources": [
                {"model": str(model), "layer_range": [start, stop], "parameters": {"weight": weight}}
                for model, weight in pairs
            ]
        }

    blocks = [slice_of(number, number + 1, weights_K) for number, weights_K in enumerate(weights_LK[1:])]
    return {
        "merge_method": "linear",
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "slices": [slice_of(0, 0, weights_LK[0]), *blocks],
    }


def _make(what: str, *arguments: object) -> None:
    """Call a function of random_models.py in a process of its own; see processes.py."""
    words = [str(argument) if isinstance(argument, Path) else argument for argument in arguments]
    subprocess.run([sys.executable, HERE / "random_models.py", what, json.dumps(words)], check=True)


def _write_weights(work: Path, shape: str, count: int) -> Path:
    path = work / f"weights{count}.json"
    _make("write_weights", path, shape, count)
    return path


def table(groups: list[Group]) -> str:
    """One markdown table; ratios to mergekit are of wall time, CPU time, peak and anonymous memory."""
    lines = [
        "| inputs | command | wall s | CPU s | peak MB | of that anonymous | to mergekit (wall, CPU, peak, anonymous) "
        "| to copy (wall, CPU) | to one adapter (wall, CPU) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    shown = {group.name: {label: _summary(usages) for label, usages in group.usages.items()} for group in groups}
    single = next((rows["recall merge"] for name, rows in shown.items() if name.startswith("1 LoRA")), None)
    for name, rows in shown.items():
        for label, usage in rows.items():
            ours = label.startswith("recall merge") and "help" not in label
            ratios = [
                _ratio(usage, rows.get("mergekit"), ("wall", "cpu", "peak", "anonymous")) if ours else "",
                _ratio(usage, rows.get("copy"), ("wall", "cpu")) if label != "copy" else "",
                _ratio(usage, single if "LoRA" in name else None, ("wall", "cpu")) if ours else "",
            ]
            times = f"{usage.wall:.2f} | {usage.cpu:.2f} | {usage.peak:.0f} | {usage.anonymous:.0f}"
            lines.append(f"| {name} | {label} | {times} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def _summary(usages: list[Usage]) -> Usage:
    return Usage(
        median(usage.wall for usage in usages),
        median(usage.cpu for usage in usages),
        max(usage.peak for usage in usages),
        max(usage.anonymous for usage in usages),
    )


def _ratio(usage: Usage, other: Usage | None, fields: tuple[str, ...]) -> str:
    if other is None:
        return ""
    return ", ".join(f"{getattr(usage, field) / getattr(other, field):.2f}" for field in fields)


def of_the_slower(group: Group) -> float:
    """The merge's speed on a device, over the slower of reading and writing the files and copying there and back."""
    wall = {label: _summary(usages).wall for label, usages in group.usages.items()}
    return max(wall["copy"], wall[DEVICE_COPY]) / wall[DEVICE_MERGE]


def machine() -> str:
    """Processor, cores, memory and versions."""
    described = Path("/proc/cpuinfo").read_text().split("model name", 1)
    cpu = described[1].split(":", 1)[1].split("\n", 1)[0].strip() if len(described) > 1 else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "numpy", "safetensors", "mergekit"))
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, {memory:.0f} GiB; Python {platform.python_version()}, {versions}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "elsewhere"


def main() -> None:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shm = Path("/dev/shm")
    parser.add_argument("--work", type=Path, default=shm if shm.is_dir() else None, help="where the models are made")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="tiny models, to try the benchmark itself")
    parser.add_argument("--device", help="where weighted sums are computed in some rows more: cuda, cuda:1, ...")
    parser.add_argument("--only", choices=["full", "count", "adapters", "start"], nargs="*", help="some groups alone")
    beside = shutil.which(
        "mergekit-yaml", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    parser.add_argument(
        "--mergekit", default=beside, help="the mergekit-yaml command; its rows are left out without it"
    )
    given = parser.parse_args()
    large, middle = ("small", "small") if given.small else ("1.1B", "0.2B")
    makers: list[tuple[str, Callable[[Path], Group]]] = [
        ("start", lambda work: start_up(work, given.mergekit)),
        (
            "full",
            lambda work: full_models(work, large, 3, everything=True, mergekit=given.mergekit, device=given.device),
        ),
        *(
            ("count", lambda work, count=count: full_models(work, middle, count, everything=False, mergekit=None))
            for count in (2, 4, 8, 16)
        ),
        *(("adapters", lambda work, count=count: adapters(work, large, count)) for count in (1, 4, 16)),
    ]
    groups = []
    for kind, make in makers:
        if given.only is None or kind in given.only:
            with tempfile.TemporaryDirectory(prefix="merge_speed-", dir=given.work) as work:
                groups.append(make(Path(work)))
                groups[-1].run(Path(work), given.runs)
    with tempfile.TemporaryDirectory(prefix="merge_speed-", dir=given.work) as work:
        unused = imported_for_nothing(Path(work))
    print(f"{machine()}; medians of {given.runs} runs\n\n{table(groups)}\n")
    for group in groups:
        if DEVICE_MERGE in group.usages:
            print(
                f"On {given.device}: {of_the_slower(group):.2f} of the speed of the slower of copy and {DEVICE_COPY}."
            )
    print(f"Imported for nothing: {', '.join(unused) or 'none'} of {', '.join(UNUSED)}.")


if __name__ == "__main__":
    main()
