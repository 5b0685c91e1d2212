"""Reading `params.yaml`, a profile and single settings over it, into `Settings`; the first mistake in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from recall.errors import BadInput, one_line
from recall.settings import Settings


def load_settings(config: Path, profile: str | None = None, overrides: list[str] | None = None) -> Settings:
    """Read `params.yaml`, lay `profiles/<profile>.yaml` and `key=value` overrides over it, and check the whole.

    Raises:
        BadInput: the file is missing or not YAML, a key is unknown or missing, or a value does not fit.
    """
    values = _read_yaml(config)
    if profile is not None:
        if Path(profile).name != profile:
            raise BadInput(f"profile {profile!r} is no name of a file in {config.parent / 'profiles'}")
        values = _overlay(values, _read_yaml(config.parent / "profiles" / f"{profile}.yaml"))
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise BadInput(f"--set {override}: expected key=value, for instance --set finetuning.epochs=3")
        try:
            nested: Any = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise BadInput(f"--set {override}: the value is not YAML ({one_line(error)}); quote it") from error
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = _overlay(values, nested)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{_where_given(error, overrides or []) or config}: {_first_problem(error)}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); name the settings file with --config") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 ({one_line(error)}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not YAML: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds no settings; it must be a mapping with stream, base_model and learning_tasks")
    return values


def _overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(merged[key], value) if both else value
    return merged


def _where_given(error: ValidationError, overrides: list[str]) -> str:
    """The last --set that gave the first problem's value; empty where a file did."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    keys = {text: text.partition("=")[0] for text in overrides}
    own = [text for text, key in keys.items() if f"{where}.".startswith(f"{key}.")]
    # A key that goes deeper than there are settings; a whole section may be wrong by what the file has.
    if not own and first["type"] not in {"missing", "value_error"}:
        own = [text for text, key in keys.items() if key.startswith(f"{where}.")]
    return f"--set {own[-1]}" if own else ""


def _first_problem(error: ValidationError) -> str:
    """One sentence out of pydantic's list: the first problem, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    found = "" if first["type"] in {"missing", "value_error"} else f" (found {first['input']!r})"
    what = {
        "missing": "is missing",
        "extra_forbidden": "is no setting; check its spelling",
    }.get(first["type"], first["msg"].removeprefix("Value error, "))
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{where} {what}{found}{more}".strip()
