"""Prefect's results in its local storage: one is read only where it is exactly what the store says it must be.

Prefect loads a result by the serializer that the file itself names (pickle, or a class by its name), and fails on one
that a full disk cut short. A result that is anything else than expected is removed, never loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

from prefect.serializers import JSONSerializer
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH
from pydantic import BaseModel, ValidationError

from tasks.refs import Ref


def exists(key: str) -> bool:
    """Is there a result under `key`?"""
    return _file(key).exists()


def forget(key: str) -> None:
    """Remove the result under `key`, if there is one."""
    _file(key).unlink(missing_ok=True)


def holds(key: str, expected: Ref) -> bool:
    """Does the file under `key` name Prefect's JSON serializer and hold `expected`, but for the paths of its day?"""
    try:
        record = json.loads(_file(key).read_text(encoding="utf-8"))
        result = json.loads(record["result"])
        found = type(expected).model_validate(result["data"])
        serializer = record["metadata"]["serializer"]
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return False
    # Only fields of the model passed its validation, so no other class can be named anywhere inside.
    named = f"{type(expected).__module__}.{type(expected).__qualname__}"
    as_expected = record.keys() == {"metadata", "result"} and result.keys() == {"__class__", "data"}
    plain = JSONSerializer().model_dump(mode="json")
    return (
        as_expected
        and result["__class__"] == named
        and serializer == plain
        and _without_paths(found) == _without_paths(expected)
    )


def _without_paths(value: object) -> object:
    if isinstance(value, BaseModel):
        return _without_paths(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {name: _without_paths(item) for name, item in value.items() if name != "path"}
    return value


def _file(key: str) -> Path:
    return Path(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value()) / key
