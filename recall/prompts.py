"""The samples that a person gives for a merge: JSON lines with `prompt` or `text`, and perhaps a `target`."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ConfigDict, ValidationError, model_validator

from recall.errors import BadInput
from recall.learning_tasks import json_lines
from recall.results import Frozen


class Sample(Frozen):
    """One row; further keys are of no matter here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str = ""
    text: str = ""
    target: str | None = None

    @model_validator(mode="after")
    def _has_text(self) -> Sample:
        if not self.read:
            raise ValueError("a row needs a prompt or a text")
        return self

    @property
    def read(self) -> str:
        """What the models read."""
        return self.prompt or self.text


def read_samples(path: Path) -> list[Sample]:
    """The rows of a file, each text once.

    Raises:
        BadInput: the file cannot be read, is empty, or has a malformed row (its number is in the message).
    """
    try:
        lines = json_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"samples {path} cannot be read ({error}); give a JSON-lines file") from error
    samples: dict[str, Sample] = {}
    for number, line in enumerate(lines, start=1):
        try:
            sample = Sample.model_validate(json.loads(line))
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}, row {number}: not JSON ({error.msg})") from error
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise BadInput(f"{path}, row {number}: {message}") from error
        samples.setdefault(sample.read, sample)
    if not samples:
        raise BadInput(f"samples {path} is empty; give at least one row with prompt or text")
    return list(samples.values())
