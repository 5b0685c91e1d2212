"""The recorded Git commits and the environment lock: do they exist, and do they fit each other?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from recall.audit_verdicts import Link, Status
from tasks.audit_source import Registered
from tasks.data_objects import file_at
from tasks.data_versions import git

LOCK = "constraints.txt"
CODE = Path(__file__).parent.parent


def check_code(update: Registered) -> Iterator[Link]:
    """The project's commit, the code's, and the lock that the code's commit holds."""
    lineage = update.lineage
    draft = bool(lineage.draft_because)
    yield _commit_link(update, "Git commit of the project", lineage.git_commit, Path.cwd(), draft)
    if lineage.code is None:
        yield update.unrecorded("code", "Git commit of the code", "a commit")
    else:
        commit = lineage.code.git_commit
        maybe = draft or not lineage.code.clean
        yield _commit_link(update, "Git commit of the code", commit, repository_with(commit), maybe)
    yield _lock_link(update)


def repository_with(commit: str | None) -> Path:
    """The project's folder where its repository has the commit, else that of this code."""
    here = Path.cwd()
    return here if commit and git(here, "cat-file", "-e", f"{commit}^{{commit}}") is not None else CODE


def _commit_link(update: Registered, name: str, commit: str | None, folder: Path, draft: bool) -> Link:
    """Is the commit there? Of a draft nothing promised that it would be, and a shallow clone has the newest alone."""
    if commit is None:
        return update.link("code", name, "unknown", "a commit", "none was recorded: there was no Git repository")
    expected = f"commit {commit}"
    if git(folder, "cat-file", "-e", f"{commit}^{{commit}}") is not None:
        return update.link("code", name, "ok", expected, "it is in the repository")
    shallow = [git(place, "rev-parse", "--is-shallow-repository") for place in (folder, Path.cwd())]
    if shallow[0] is None:
        return update.link("code", name, "unknown", expected, f"{folder} is no Git repository", out_of_reach=True)
    if "true" in shallow:
        found = "a shallow clone, which does not have it; run `git fetch --unshallow`"
        return update.link("code", name, "unknown", expected, found, out_of_reach=True)
    found = f"the repository around {folder} does not have it"
    if draft:
        return update.link("code", name, "unknown", expected, f"{found}; it was a draft, whose commit may never leave")
    return update.link(
        "code", name, "failed", expected, f"{found}; fetch it, or it was never pushed or rewritten since"
    )


def _lock_link(update: Registered) -> Link:
    lineage = update.lineage
    name, expected = "environment lock", f"SHA-256 {lineage.environment_lock_sha256}"
    commit = lineage.code.git_commit if lineage.code else lineage.git_commit
    content = file_at(commit, repository_with(commit) / LOCK) if commit else None
    if content is None:
        found = f"commit {(commit or 'none')[:12]} of the code is not here, or has no {LOCK}"
        return update.link("code", name, "unknown", expected, found)
    actual = hashlib.sha256(content).hexdigest()
    if actual != lineage.environment_lock_sha256 and (
        lineage.draft_because or (lineage.code and not lineage.code.clean)
    ):
        found = f"SHA-256 {actual} at the commit, and the tree was not clean when the version was made"
        return update.link("code", name, "unknown", expected, found)
    status: Status = "ok" if actual == lineage.environment_lock_sha256 else "failed"
    return update.link("code", name, status, expected, f"SHA-256 {actual} at the commit")
