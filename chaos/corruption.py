"""Cache entries that rot or are tampered with between a killed run and the next."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from chaos.bench import TESTS, Bench, Victim
from tasks.store import MANIFEST

KINDS = ("datasets", "experts", "samples", "representations", "weights", "merged", "scores")


def flip_a_byte(file: Path, random: Random) -> None:
    """Change one byte; name and size stay."""
    content = bytearray(file.read_bytes())
    place = random.randrange(len(content))
    content[place] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def cut_short(file: Path, random: Random) -> None:
    """Lose the second half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garbage(file: Path, random: Random) -> None:
    """Other bytes altogether."""
    file.write_bytes(random.randbytes(64))


def empty(file: Path, random: Random) -> None:
    """No bytes at all."""
    file.write_bytes(b"")


def remove(file: Path, random: Random) -> None:
    """The file is gone."""
    file.unlink()


def an_artifact_file(folder: Path, random: Random) -> Path:
    """One file of an artifact, not its manifest."""
    return random.choice(sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST))


def the_manifest(folder: Path, random: Random) -> Path:
    """The artifact's manifest."""
    return folder / MANIFEST


def prefects_result(folder: Path, random: Random) -> Path:
    """What Prefect keeps of the task run that made the artifact."""
    return folder.parent.parent / "results" / folder.name


def corrupted(
    bench: Bench,
    random: Random,
    which: Callable[[Path, Random], Path],
    harm: Callable[[Path, Random], None],
) -> Victim:
    """Kill a run as it registers its first update, and harm every cache entry that it made."""
    victim = bench.fresh("corrupted cache")
    code, output = victim.finish(str(TESTS / "kill_at.py"), "register", "run")
    assert code == -signal.SIGKILL, output
    for kind in KINDS:
        for folder in sorted((victim.folder / ".store" / kind).glob("[!.]*")):
            harm(which(folder, random), random)
    return victim


FAULTS: dict[str, Callable[[Bench, Random], Victim]] = {
    "artifact files, a bit flipped": partial(corrupted, which=an_artifact_file, harm=flip_a_byte),
    "artifact files cut short": partial(corrupted, which=an_artifact_file, harm=cut_short),
    "artifact files gone": partial(corrupted, which=an_artifact_file, harm=remove),
    "manifests, a bit flipped": partial(corrupted, which=the_manifest, harm=flip_a_byte),
    "manifests full of garbage": partial(corrupted, which=the_manifest, harm=garbage),
    "Prefect's results cut short": partial(corrupted, which=prefects_result, harm=cut_short),
    "Prefect's results full of garbage": partial(corrupted, which=prefects_result, harm=garbage),
    "Prefect's results empty": partial(corrupted, which=prefects_result, harm=empty),
}
