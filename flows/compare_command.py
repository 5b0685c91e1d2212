"""`recall compare`: RECALL beside the baselines, in the paper's three settings, over seeds and orders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from flows.environment import set_defaults
from flows.one_sentence import Config, Debug, Json, Overrides, Profile, errors_in_one_sentence
from recall.errors import BadInput
from recall.load_settings import load_settings

Repeated = list[str]


def compare(
    setting: Annotated[
        Repeated, typer.Option(metavar="NAME", help="single, independent or stream; repeatable, default: all three")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    method: Annotated[
        Repeated, typer.Option(metavar="NAME", help="compare RECALL and the base with this; repeatable")
    ] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="how many: seed i is that of training, sampling and merging")] = 1,
    orders: Annotated[
        int,
        typer.Option(
            help="how many orders of the learning tasks; the first is the stream's. In independent only the newest "
            "counts, so there is one for each learning task at most"
        ),
    ] = 1,
    paired: Annotated[
        bool, typer.Option("--paired", help="seed i goes with order i alone, not with every order")
    ] = False,
    vary: Annotated[
        Repeated,
        typer.Option(
            metavar="KEY=V1,V2", help="RECALL with one setting changed, too (of merging, that with moments); repeatable"
        ),
    ] = [],  # noqa: B006
    split: Annotated[str, typer.Option(help="what is scored on: test, or validation to choose settings by")] = "test",
    results: Annotated[Path, typer.Option(help="JSON lines; what is in it is not made again")] = Path(
        "comparison.jsonl"
    ),
    jobs: Annotated[
        int,
        typer.Option(min=1, help="results made at once, each in a process of its own: for a GPU, or with threads=1"),
    ] = 1,
    config: Config = Path("params.yaml"),
    profile: Profile = None,
    overrides: Overrides = [],  # noqa: B006
    take_in: Annotated[Repeated, typer.Option(metavar="NAME", help="take a changed data set in as a new version")] = [],  # noqa: B006
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare RECALL with the base, the experts and other methods, side by side; nothing is registered."""
    given = {"settings": setting, "methods": method, "seeds": seeds, "orders": orders, "paired": paired}
    given |= {"vary": vary, "split": split}
    with errors_in_one_sentence(debug):
        found = _compare(given | {"results": results}, config, profile, overrides, take_in, jobs, debug)
    if as_json:
        print(json.dumps(found | {"results": str(results)}, indent=2))
    else:
        _show(found)


def _compare(
    given: dict[str, Any],
    config: Path,
    profile: str | None,
    overrides: list[str],
    take_in: list[str],
    jobs: int,
    debug: bool,
) -> dict[str, Any]:
    settings = load_settings(config, profile, overrides)
    set_defaults(settings.store, debug)
    from flows.orphans import end_orphaned_servers, flow_of_this_process

    end_orphaned_servers()
    from flows.comparison_cases import Options, read_variants

    try:
        # What was not given takes its default.
        options = Options.model_validate({name: value for name, value in given.items() if value != []})
    except ValidationError as error:
        first = error.errors()[0]
        option = {"settings": "setting", "methods": "method"}.get(str(first["loc"][0]), first["loc"][0])
        raise BadInput(f"--{option} {first['input']}: {first['msg']}; see --help") from error
    variants = read_variants(options, config, profile, overrides)
    from flows.compare import check_comparison
    from flows.compare import compare as flow
    from flows.comparison_jobs import check_jobs

    check_jobs(jobs, settings)
    # Checked here too, before Prefect's server takes its seconds to start and shows errors in its own way.
    check_comparison(settings, options, variants, take_in)
    with flow_of_this_process():
        found: Any = flow(options, str(config), profile, overrides, jobs)
    return dict(found)


def _show(found: dict[str, Any]) -> None:
    from recall.comparison import SettingSummary
    from recall.comparison_table import sentence, table

    # Without a terminal rich assumes 80 columns, too few for the tables.
    out = Console(width=None if sys.stdout.isatty() else 160)
    for summary in map(SettingSummary.model_validate, found["comparisons"]):
        out.print(table(summary))
        out.print(sentence(summary), soft_wrap=True, markup=False, highlight=False)
    out.print(found["said"], soft_wrap=True, markup=False, highlight=False)
