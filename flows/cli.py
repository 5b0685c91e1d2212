"""The `recall` command."""

from __future__ import annotations

import atexit
import gc
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from flows.audit_command import audit, sign
from flows.compare_command import compare
from flows.environment import set_defaults
from flows.merge_command import merge, moments
from flows.one_sentence import Config, Debug, Json, Overrides, Profile, errors_in_one_sentence
from flows.orphans import end_orphaned_servers, flow_of_this_process
from flows.own_server import OwnServer
from flows.promotion_command import promote, rollback, status
from flows.report_command import report
from recall.load_settings import load_settings
from recall.results import StreamResult
from recall.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def _recall() -> None:
    """Keep a language model up to date, learning task after learning task, without forgetting (RECALL)."""


@app.command()
def run(
    config: Config = Path("params.yaml"),
    profile: Profile = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody changes it
    take_in: Annotated[
        list[str], typer.Option(metavar="NAME", help="take a changed data set in as a new version")
    ] = [],  # noqa: B006
    recompute: Annotated[bool, typer.Option(help="make updates again that are registered already")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take in the whole stream of learning tasks, or what is new in it, and say what was kept and lost."""
    started = time.monotonic()
    with errors_in_one_sentence(debug):
        settings = load_settings(config, profile, overrides)
        found = _continual_update(settings, config, profile, overrides, take_in, recompute, debug)
    if as_json:
        print(json.dumps(found["summary"], indent=2))
    else:
        _show(found, time.monotonic() - started)


def _continual_update(
    settings: Settings,
    config: Path,
    profile: str | None,
    overrides: list[str],
    take_in: list[str],
    recompute: bool,
    debug: bool,
) -> dict[str, Any]:
    set_defaults(settings.store, debug)
    end_orphaned_servers()
    from flows.preflight import check_baselines, check_inputs

    # Checked here too, before Prefect shows errors in its own way; its server starts while MLflow is imported.
    server = OwnServer()
    check_baselines(settings)
    check_inputs(settings, take_in, meanwhile=server.start)
    from flows.continual_update import continual_update

    server.wait()
    with flow_of_this_process():
        # Called as a function, a flow gives its state's data.
        return cast(dict[str, Any], continual_update(str(config), profile, overrides, recompute=recompute))


def _show(found: dict[str, Any], seconds: float) -> None:
    from recall.summary import table

    # Without a terminal rich assumes 80 columns, too few for the table.
    out = Console(width=None if sys.stdout.isatty() else 120)
    result = StreamResult.model_validate(found["result"])
    out.print(table(result))
    out.print(found["summary"]["verdict"])
    for caution in found["summary"]["warnings"]:
        out.print(f"warning: {caution}", style="yellow", markup=False)
    new = [update for update in result.updates if not update.reused]
    made = (
        f"{len(new)} of {len(result.updates)} updates made"
        if new
        else "nothing new: every update was registered before"
    )
    out.print(
        f"{made}, {seconds:.0f} s; registered as models:/{result.stream}/{result.updates[-1].version}", soft_wrap=True
    )
    if result.draft:
        why = "; ".join(found["draft_because"])
        out.print(
            f"a draft run, and no version that it made can be promoted ({why}): commit your changes, push the data, "
            "run again",
            markup=False,
            soft_wrap=True,
        )
    out.print(f"report: {Path(found['summary']['report']).resolve()}", soft_wrap=True)


app.command()(compare)
app.command()(audit)
app.command()(sign)
app.command()(merge)
app.command()(moments)
app.command()(promote)
app.command()(rollback)
app.command()(status)
app.command()(report)


def main() -> None:
    """Entry point of the `recall` script."""
    # The interpreter's last search for garbage goes through all that torch has made, and frees nothing of use: 0.4 s.
    atexit.register(gc.freeze)
    app()


if __name__ == "__main__":
    main()
