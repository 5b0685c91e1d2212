"""Disks that fill up or turn read-only, in mount namespaces of their own: nothing outside sees or needs them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from chaos.bench import Bench, Victim, ended, wait_or_over

# A user namespace needs no root; where it is forbidden, root needs none.
UNSHARE = (["unshare", "--map-root-user", "--mount"], ["unshare", "--mount"])
ROOMY = "1g"


class Skipped(Exception):
    """The fault cannot be made on this machine."""


class Namespace:
    """A mount namespace that lives as long as its sleeping process."""

    def __init__(self, mount: str) -> None:
        for command in UNSHARE:
            self.holder = subprocess.Popen(
                [*command, "sh", "-ec", f"{mount}; echo ready; exec sleep 3600"], stdout=subprocess.PIPE, text=True
            )
            assert self.holder.stdout is not None
            if self.holder.stdout.readline() == "ready\n":
                break
            self.holder.wait()
        else:
            raise Skipped("neither user namespaces nor mounts are allowed here")
        kinds = ["--user", "--preserve-credentials"] if "--map-root-user" in command else []
        self.enter = ["nsenter", f"--target={self.holder.pid}", *kinds, "--mount"]

    def run(self, command: str) -> None:
        """Run a shell command inside."""
        subprocess.run([*self.enter, "sh", "-ec", command], check=True)

    def holding(self, bench: Bench, place: Path) -> Victim:
        """The copy at `place`, which only this namespace sees as it is."""
        victim = bench.at(place)
        victim.inside = [*self.enter, f"--wdns={victim.project.folder}"]
        victim.seen_at = Path(f"/proc/{self.holder.pid}/root{victim.project.folder}")
        return victim


def full_disk(bench: Bench, random: Random, share: float) -> Victim:
    """Run on a disk that has room for so large a share of what a run writes; then make room."""
    place = bench.fresh("full disk").project.folder.parent
    source = place.with_name(place.name + "-source")
    place.rename(source)
    place.mkdir()
    used = sum(file.stat().st_blocks * 512 for file in source.rglob("*"))
    size = int(used + bench.bytes * (share + random.uniform(-0.1, 0.1)))
    namespace = Namespace(f"mount -t tmpfs -o size={ROOMY} tmpfs {place}; cp -a {source}/. {place}")
    bench.closing.append(namespace.holder)
    namespace.run(f"mount -o remount,size={size} {place}")
    victim = namespace.holding(bench, place)
    code, output = victim.finish()
    assert code != 0, f"a full disk was not noticed:\n{output}"
    namespace.run(f"mount -o remount,size={ROOMY} {place}")
    return victim


def read_only_store(bench: Bench, random: Random) -> Victim:
    """Run with a store that cannot be written: refused at once, with exit code 2 and nothing left behind."""
    victim = bench.fresh("read-only store")
    store = victim.folder / ".store"
    store.mkdir()
    namespace = Namespace(f"mount --bind {store} {store}; mount -o remount,bind,ro {store}")
    bench.closing.append(namespace.holder)
    inside = namespace.holding(bench, victim.project.folder.parent)
    code, output = inside.finish()
    assert code == 2 and "cannot be written" in output, f"exit code {code}:\n{output}"
    return victim


def store_turns_read_only(bench: Bench, random: Random) -> Victim:
    """Make the store read-only while a run writes to it, as the kernel does with a file system it no longer trusts."""
    victim = bench.fresh("store turns read-only")
    store = victim.folder / ".store"
    store.mkdir()
    namespace = Namespace(f"mount --bind {store} {store}")
    bench.closing.append(namespace.holder)
    process = namespace.holding(bench, victim.project.folder.parent).start()
    assert wait_or_over(process, bench.seconds * random.uniform(0.6, 0.8)), "over before its store turned read-only"
    namespace.run(f"mount -o remount,bind,ro {store}")
    code, output = ended(process)
    assert code != 0, f"a read-only store was not noticed:\n{output}"
    return victim


FAULTS: dict[str, Callable[[Bench, Random], Victim]] = {
    **{f"disk full at {share:.0%} of the run's files": partial(full_disk, share=share) for share in (0.15, 0.5, 0.85)},
    "store read-only from the start": read_only_store,
    "store turns read-only in the run": store_turns_read_only,
}
