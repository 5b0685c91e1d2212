"""How every command ends badly: one sentence, an exit code, no traceback unless it is asked for."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from recall.errors import BadInput, Failed, without_secrets
from recall.progress import console

Config = Annotated[Path, typer.Option(help="the settings file")]
Profile = Annotated[str | None, typer.Option(help="lay profiles/NAME.yaml over the settings")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="change one setting, e.g. finetuning.epochs=3")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON to standard output")]
Debug = Annotated[bool, typer.Option(help="show the traceback of an error")]


class errors_in_one_sentence:  # noqa: N801 - reads as a statement: with errors_in_one_sentence(debug)
    """Turn an error into one sentence on stderr (a traceback with `debug`), exit code 2 (bad input) or 1 (failed)."""

    def __init__(self, debug: bool) -> None:
        self.debug = debug

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        code = 2 if isinstance(error, BadInput) else 1
        if self.debug:
            _print_without_secrets(type(error), error, error.__traceback__)
            sys.exit(code)
        sentence = str(error)
        if not isinstance(error, BadInput | Failed):
            first_line = sentence.splitlines()[0] if sentence else "no message"
            sentence = f"{type(error).__name__}: {first_line} (--debug shows where)"
        console.print(
            f"recall: {without_secrets(sentence)}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(code)


def _print_without_secrets(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    print(without_secrets("".join(traceback.format_exception(kind, error, where))), file=sys.stderr, end="")
