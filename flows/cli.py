"""The `recall` command."""

from __future__ import annotations

import atexit
import gc
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from flows.environment import set_defaults
from recall.errors import BadInput, Failed
from recall.progress import console
from recall.results import StreamResult
from recall.settings import Settings, load_settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Config = Annotated[Path, typer.Option(help="the settings file")]
Profile = Annotated[str | None, typer.Option(help="lay profiles/NAME.yaml over the settings")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="change one setting, e.g. finetuning.epochs=3")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON to standard output")]
Debug = Annotated[bool, typer.Option(help="show the traceback of an error")]


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
    from flows.preflight import check_inputs

    # Checked here too, before Prefect's server takes its seconds to start and shows errors in its own way.
    check_inputs(settings, take_in)
    from flows.continual_update import continual_update

    found: dict[str, Any] = continual_update(str(config), profile, overrides, recompute=recompute)
    return found


def _show(found: dict[str, Any], seconds: float) -> None:
    from recall.summary import table

    # Without a terminal rich assumes 80 columns, too few for the table.
    out = Console(width=None if sys.stdout.isatty() else 120)
    result = StreamResult.model_validate(found["result"])
    out.print(table(result))
    out.print(found["summary"]["verdict"])
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
        out.print(
            "a draft, which can never be promoted: commit your changes and push the data, then run again",
            soft_wrap=True,
        )
    out.print(f"report: {Path(found['summary']['report']).resolve()}", soft_wrap=True)


@app.command()
def merge(
    model: Annotated[list[str], typer.Option(help="a folder, a hub id or a LoRA adapter; the newest last")],
    out: Annotated[Path, typer.Option(help="the folder to write; must not exist")],
    samples: Annotated[
        Path | None, typer.Option(help="JSON lines with text or prompt: what the weights come from")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="a recall.json with the weights; then no samples")] = None,
    clusters: Annotated[int, typer.Option(help="how many typical samples to choose by K-means")] = 20,
    all_samples: Annotated[bool, typer.Option("--all-samples", help="use every sample")] = False,
    sigma: Annotated[str, typer.Option(help="median, or one number for all layers")] = "median",
    temperature: Annotated[float, typer.Option(help="of the softmax over models")] = 1.0,
    alignment_threshold: Annotated[float, typer.Option(help="less alike at a layer: no weight there")] = 0.0,
    as_adapter: Annotated[bool, typer.Option("--as-adapter", help="write one LoRA adapter, not full weights")] = False,
    rank: Annotated[int | None, typer.Option(help="cut the adapter to this rank; the error is stated")] = None,
    threads: Annotated[int | None, typer.Option(help="default: the free cores")] = None,
    max_memory: Annotated[str | None, typer.Option(help="for the merge itself, e.g. 500MB")] = None,
    no_hashes: Annotated[
        bool, typer.Option("--no-hashes", help="leave the inputs' SHA-256 out of recall.json")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show layers, sizes and memory; write nothing")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge models of one architecture layer by layer, by given weights or by how alike they represent samples."""
    started = time.monotonic()
    with errors_in_one_sentence(debug):
        from recall.merge_job import merge_models, merge_request

        request = merge_request(
            models=model,
            out=out,
            samples=samples,
            weights=weights,
            clusters=None if all_samples else clusters,
            weighting={"sigma": sigma, "temperature": temperature, "alignment_threshold": alignment_threshold},
            as_adapter=as_adapter,
            rank=rank,
            threads=threads,
            max_memory=max_memory,
            hash_inputs=not no_hashes,
        )
        if dry_run:
            from recall.merge_plan import merge_plan, plan_table

            plan = merge_plan(request)
            console.print_json(plan.model_dump_json()) if as_json else Console().print(plan_table(plan))
            return
        record = merge_models(request)
    if as_json:
        print(record.model_dump_json(indent=1))
    else:
        print(f"{len(record.models)} models merged in {time.monotonic() - started:.1f} s: {out}")


class errors_in_one_sentence:  # noqa: N801 - reads as a statement: with errors_in_one_sentence(debug)
    """Turn an error into one sentence on stderr and exit code 2 (bad input) or 1 (failed)."""

    def __init__(self, debug: bool) -> None:
        self.debug = debug

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or self.debug or not isinstance(error, Exception):
            return
        sentence = str(error)
        if not isinstance(error, BadInput | Failed):
            first_line = sentence.splitlines()[0] if sentence else "no message"
            sentence = f"{type(error).__name__}: {first_line} (--debug shows where)"
        console.print(f"recall: {sentence}", style="red", markup=False, highlight=False, soft_wrap=True)
        _exit(2 if isinstance(error, BadInput) else 1)


def _exit(code: int) -> NoReturn:
    sys.exit(code)


def main() -> None:
    """Entry point of the `recall` script."""
    # The interpreter's last search for garbage goes through all that torch has made, and frees nothing of use: 0.4 s.
    atexit.register(gc.freeze)
    app()


if __name__ == "__main__":
    main()
