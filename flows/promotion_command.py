"""`recall promote`, `recall rollback` and `recall status`: the champion of a stream, moved by gates or back by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.environment import set_defaults
from flows.one_sentence import Config, Debug, Json, Overrides, Profile, errors_in_one_sentence
from recall.load_settings import load_settings

Who = Annotated[str | None, typer.Option(help="who moves it; default: the user of MLflow's server, or of this machine")]


def promote(
    version: Annotated[str | None, typer.Option(help="the version to judge; default: the challenger")] = None,
    why: Annotated[str, typer.Option(help="a reason for the ledger")] = "",
    who: Who = None,
    config: Config = Path("params.yaml"),
    profile: Profile = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody changes it
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Judge a version by the gates of params.yaml, and make it champion if it passes them all; exit code 1 if not."""
    with errors_in_one_sentence(debug):
        settings = load_settings(config, profile, overrides)
        set_defaults(settings.store, debug)
        from flows.orphans import end_orphaned_servers, flow_of_this_process
        from tasks import registry

        end_orphaned_servers()
        registry.client()  # before Prefect's server takes its seconds to start
        from flows.moves import Move, sound_ledger, version_to_judge

        sound_ledger(settings.stream.name)
        version_to_judge(settings.stream.name, version, None)
        from flows.promote import promote as flow

        with flow_of_this_process():
            found = flow(str(config), profile, overrides, version=version, why=why, who=who)
        done = Move.model_validate(found)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        from recall.gates_table import table

        out = _console()
        if done.verdict:
            out.print(table(done.verdict))
        out.print(done.said, soft_wrap=True, markup=False, highlight=False)
    raise typer.Exit(0 if done.champion == done.version else 1)


def rollback(
    why: Annotated[str, typer.Option(help="a reason for the ledger")] = "",
    who: Who = None,
    config: Config = Path("params.yaml"),
    profile: Profile = None,
    overrides: Overrides = [],  # noqa: B006
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make the champion before the present one champion again; needs MLflow alone."""
    with errors_in_one_sentence(debug):
        settings = load_settings(config, profile, overrides)
        set_defaults(settings.store, debug)
        from flows.moves import roll_back, whoami

        done = roll_back(settings.stream.name, why, who or whoami())
    if as_json:
        print(done.model_dump_json(indent=2))
    else:
        _console().print(done.said, soft_wrap=True, markup=False, highlight=False)


def status(
    config: Config = Path("params.yaml"),
    profile: Profile = None,
    overrides: Overrides = [],  # noqa: B006
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the stream's versions, aliases, verdicts, audits and ledger; changes nothing."""
    with errors_in_one_sentence(debug):
        settings = load_settings(config, profile, overrides)
        set_defaults(settings.store, debug)
        from flows.status import shown, stream_status

        found = stream_status(settings)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        _console().print(shown(found), soft_wrap=False)


def _console() -> Console:
    # Without a terminal rich assumes 80 columns, too few for the tables.
    return Console(width=None if sys.stdout.isatty() else 120)
