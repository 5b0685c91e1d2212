"""The one cache policy: a stage's name, its code in `recall`, the settings it reads, its inputs' fingerprints."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.cache_policies import CachePolicy
from pydantic import BaseModel

from tasks.refs import Ref, digest


def fingerprint(stage: str, code: str, inputs: dict[str, Any]) -> str:
    """The fingerprint: never a path, a time or a setting that the stage does not read.

    Args:
        stage: the stage's name, so that two stages with equal inputs never collide.
        code: `source_digest` of the module that defines the stage.
        inputs: references, settings models, plain JSON values, and lists of these.
    """
    values = {name: stable(value) for name, value in inputs.items()}
    return digest({"stage": stage, "code": code, "inputs": values})


def source_digest(module: str) -> str:
    """SHA-256 over the sources of `module` and of every `recall` module that it imports, directly or not.

    Taken once, when the code is imported: an edit while a run goes on must not be filed under the new code's key.
    """
    return digest({name: hashlib.sha256(source).hexdigest() for name, source in sources(module).items()})


def sources(module: str) -> dict[str, bytes]:
    """Name and source of `module` and of every `recall` module that it imports, directly or not."""
    seen: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen[name] = _source(name)
            waiting.extend(imported for imported in _imports(seen[name]) if imported.startswith("recall."))
    return seen


@dataclass(kw_only=True)
class StageFingerprint(CachePolicy):
    """The cache key of a task that takes its inputs as `inputs`; Prefect's own policies miss helper edits."""

    stage: str
    code: str

    def compute_key(self, task_ctx: Any, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any) -> str:
        """See `fingerprint`."""
        return fingerprint(self.stage, self.code, inputs["inputs"])


def stable(value: Any) -> Any:
    """A stage's input as JSON: a reference's fingerprint, a settings model's fields, lists of these, plain values."""
    if isinstance(value, Ref):
        return value.fingerprint
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [stable(item) for item in value]
    return value


def _source(module: str) -> bytes:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"{module} has no source"
    return Path(spec.origin).read_bytes()


@functools.cache
def _imports(source: bytes) -> tuple[str, ...]:
    return tuple(_imported_modules(source))


def _imported_modules(source: bytes) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from recall import merging` names a module, `from recall.merging import merge` something inside one.
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inside if node.module == "recall" and importlib.util.find_spec(name)]
            yield from modules or [node.module]
