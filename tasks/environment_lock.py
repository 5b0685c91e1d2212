"""Is what is installed what a `constraints.txt` pins?"""

from __future__ import annotations

import tomllib
from collections.abc import Container
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def lock_differences(lock: str, pyproject: Path) -> list[str]:
    """One word each for the packages that differ from the lock, and for those that the project needs and that lack.

    Args:
        lock: lines `name==version`; a local label of what is installed (`2.13.0+cpu`) does not count.
        pyproject: whose dependencies, and theirs, have to be there; extras may be missing.
    """
    installed = {canonicalize_name(found.name): found.version for found in metadata.distributions() if found.name}
    pins = [Requirement(line) for line in lock.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    other = [
        f"{pin.name} {installed[name]}, not {pin.specifier}"
        for pin in pins
        if (name := canonicalize_name(pin.name)) in installed
        and not pin.specifier.contains(Version(installed[name]).public, prereleases=True)
    ]
    return other + [f"{name} is missing" for name in sorted(_missing(pyproject, installed))]


def _missing(pyproject: Path, installed: Container[str]) -> set[str]:
    """What the project's dependencies come to, and is not installed."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
    waiting = [Requirement(text) for text in project.get("dependencies", [])]
    seen: set[tuple[str, frozenset[str]]] = set()
    missing: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen or not _applies(wanted, frozenset()):
            continue
        seen.add((name, extras))
        if name not in installed:
            missing.add(name)
            continue
        for text in metadata.requires(name) or []:
            inner = Requirement(text)
            if _applies(inner, extras):
                inner.marker = None
                waiting.append(inner)
    return missing


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, ""))
