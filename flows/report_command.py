"""`recall report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.environment import set_defaults
from flows.one_sentence import Config, Debug, Json, Overrides, Profile, errors_in_one_sentence
from recall.load_settings import load_settings
from recall.progress import console

REPORTS = Path("reports")


def report(
    version: Annotated[
        str | None, typer.Option(help="the stream as it stood at this version; default: as its newest run left it")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the file; default: reports/report.html, or reports/version-N.html")
    ] = None,
    config: Config = Path("params.yaml"),
    profile: Profile = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody changes it
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the HTML report again, from MLflow alone; prints its path, or the summary as JSON."""
    with errors_in_one_sentence(debug):
        settings = load_settings(config, profile, overrides)
        set_defaults(settings.store, debug)
        from flows.stream_report import stream_reported, version_reported
        from recall.report import write_report
        from recall.summary import to_json

        name = settings.stream.name
        found = version_reported(name, version) if version else stream_reported(name)
        file = out or REPORTS / (f"version-{version}.html" if version else "report.html")
        write_report(found.result, file, found.test_rows)
        if found.left_out:
            console.print(
                f"left out, for they were not scored on the unseen learning tasks then: {', '.join(found.left_out)}",
                soft_wrap=True,
            )
        if as_json:
            print(json.dumps(to_json(found.result, file, found.test_rows), indent=2))
        else:
            typer.echo(file.resolve())
