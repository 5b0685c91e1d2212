"""The recorded Git commits and the environment lock: do they exist, and do they fit each other?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from recall.audit_verdicts import BEFORE, Link, Status
from tasks.audit_source import Registered
from tasks.data_objects import file_at
from tasks.data_versions import git

LOCK = "constraints.txt"
CODE = Path(__file__).parent.parent


def check_code(update: Registered) -> Iterator[Link]:
    """The project's commit, the code's, and the lock that the code's commit holds."""
    lineage = update.lineage
    yield _link(update, "Git commit of the project", *_commit(lineage.git_commit, Path.cwd()))
    if lineage.code is None:
        yield _link(update, "Git commit of the code", "unknown", "a commit", BEFORE)
    else:
        yield _link(
            update,
            "Git commit of the code",
            *_commit(lineage.code.git_commit, repository_with(lineage.code.git_commit)),
        )
    expected, commit = lineage.environment_lock_sha256, lineage.code.git_commit if lineage.code else lineage.git_commit
    content = file_at(commit, repository_with(commit) / LOCK) if commit else None
    if content is None:
        found = f"commit {(commit or 'none')[:12]} of the code is not here, or has no {LOCK}"
        yield _link(update, "environment lock", "unknown", f"SHA-256 {expected}", found)
        return
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected and (lineage.draft_because or (lineage.code and not lineage.code.clean)):
        found = f"SHA-256 {actual} at the commit, and the tree was not clean when the version was made"
        yield _link(update, "environment lock", "unknown", f"SHA-256 {expected}", found)
        return
    status: Status = "ok" if actual == expected else "failed"
    yield _link(update, "environment lock", status, f"SHA-256 {expected}", f"SHA-256 {actual} at the commit")


def repository_with(commit: str | None) -> Path:
    """The project's folder where its repository has the commit, else that of this code."""
    here = Path.cwd()
    return here if commit and git(here, "cat-file", "-e", f"{commit}^{{commit}}") is not None else CODE


def _commit(commit: str | None, folder: Path) -> tuple[Status, str, str]:
    if commit is None:
        return "unknown", "a commit", "none was recorded: there was no Git repository"
    if git(folder, "cat-file", "-e", f"{commit}^{{commit}}") is not None:
        return "ok", f"commit {commit}", "it is in the repository"
    if git(folder, "rev-parse", "--git-dir") is None:
        return "unknown", f"commit {commit}", f"{folder} is no Git repository"
    return "failed", f"commit {commit}", f"the repository around {folder} does not have it; fetch it"


def _link(update: Registered, name: str, status: Status, expected: str, found: str) -> Link:
    return Link(update=update.position, node="code", name=name, status=status, expected=expected, found=found)
