"""A comparison as a flow: every method in every case, through the stages of an update; nothing is registered."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas import State
from prefect.states import Completed

from flows.comparison_cases import (
    Case,
    Contender,
    Options,
    all_cases,
    check_methods,
    contenders,
    read_variants,
)
from flows.comparison_jobs import MADE, Missing, make_at_once
from flows.comparison_lines import identity, make_line
from flows.continual_update import begin
from flows.orphans import untagged_tasks
from flows.preflight import Inputs, check_inputs, check_model, check_samples
from flows.stream_state import Stream, open_stream
from recall.comparison import compare_lines
from recall.comparison_line import Line, append, check_writable, mend, read_lines
from recall.errors import BadInput
from recall.learning_tasks import read_rows
from recall.load_settings import load_settings
from recall.progress import console
from recall.settings import Settings
from recall.standings import points
from tasks import comparison_runs
from tasks.refs import DatasetRef
from tasks.workers import workers


@flow(name="compare", flow_run_name="compare")
def compare(
    options: Options,
    config: str = "params.yaml",
    profile: str | None = None,
    overrides: list[str] | None = None,
    jobs: int = 1,
    only: Missing | None = None,
) -> State[dict[str, Any]]:
    """Make what the results file does not hold yet, and sum up all that was asked for; returns that as JSON.

    With `jobs` over 1 that many processes make it, each one result at a time, and MLflow has the cases once all are
    there; `only` is the result that this process of them makes.
    """
    settings = load_settings(Path(config), profile, overrides)
    variants = read_variants(options, Path(config), profile, overrides or [])
    stream = open_stream(settings, check_comparison(settings, options, variants, []))
    if only is None and mend(options.results):
        console.print(f"{options.results}: half a line at its end, of a killed run, was cut off", soft_wrap=True)
    wanted = {case: _keys(stream, case, options, variants) for case in all_cases(settings, options)}
    before = {line.key for line in read_lines(options.results)}
    every = {key: Missing(one.label, case.name, key) for case, keys in wanted.items() for one, key in keys.items()}
    if only is not None and only.key not in every:
        raise BadInput(f"{only}: settings or data have changed since the comparison began; run the same again")
    lacking = [result for key, result in every.items() if key not in before]
    if jobs > 1 and len(lacking) > 1:
        given = {"config": config, "profile": profile, "overrides": overrides or []}
        make_at_once(lacking, jobs, given | {"options": options.model_dump(mode="json")}, settings.store / "logs")
    found = {line.key: line for line in read_lines(options.results)}
    lines: list[Line] = []
    data_sets: dict[str, DatasetRef] = {}
    with untagged_tasks(), workers(settings.runner, settings.threads, stream.store.root):
        for case, keys in wanted.items():
            if only is not None and only.key not in keys.values():
                continue
            missing = [one for one, key in keys.items() if key not in found and (only is None or key == only.key)]
            _say(case, sum(key in before for key in keys.values()), len(keys), options.results)
            for contender in missing:
                data_sets = data_sets or scored_on(begin(stream), options.split)
                changed = variants.get(contender, settings)
                line = make_line(stream, case, contender, changed, options.split, data_sets)
                append(options.results, line)
                _say_made(line, case)
                found[line.key] = line
            if only is None:
                ours = [found[key] for key in keys.values()]
                comparison_runs.log_case(settings.stream.name, case.name, ours)
                lines += ours
    made = len({line.key for line in lines} - before)
    said = f"{made} of {len(lines)} results made, the others found in {options.results}"
    said = said if only is None else f"{only} is in {options.results}"
    summaries = [summary.model_dump(mode="json") for summary in compare_lines(lines)] if only is None else []
    return Completed(
        message=said, data={"made": made, "found": len(lines) - made, "said": said, "comparisons": summaries}
    )


def _keys(stream: Stream, case: Case, options: Options, variants: dict[Contender, Settings]) -> dict[Contender, str]:
    """By which the results file knows a case's methods."""
    own = contenders(case, options, variants)
    settings = stream.settings
    return {one: identity(stream, case, one, variants.get(one, settings), options.split)["key"] for one in own}


def check_comparison(
    settings: Settings, options: Options, variants: dict[Contender, Settings], take_in: list[str]
) -> Inputs:
    """All that can be checked before the first training step; see `check_inputs`.

    Raises:
        BadInput: anything that would make the comparison fail or mislead, in one sentence.
    """
    check_methods(options, settings)
    list(all_cases(settings, options))  # there are as many orders as were asked for
    check_writable(options.results)
    read_lines(options.results)
    inputs = check_inputs(settings, take_in)
    if options.split == "validation":
        for name in settings.stream.unseen:
            read_rows(settings.task_folder(name) / "validation.jsonl", settings.learning_tasks[name])
    for changed in variants.values():
        check_samples(changed)
        if changed.finetuning.lora != settings.finetuning.lora or changed.merging.hold:
            check_model(changed)
    return inputs


def scored_on(data_sets: dict[str, DatasetRef], split: Literal["validation", "test"]) -> dict[str, DatasetRef]:
    """The same data sets with `split` in the place of the test split, so that every score is on that."""
    if split == "test":
        return data_sets
    return {name: found.model_copy(update={"test": found.validation}) for name, found in data_sets.items()}


def _say(case: Case, found: int, wanted: int, results: Path) -> None:
    console.rule(case.name)
    if found:
        console.print(f"{found} of {wanted} methods are in {results} already", soft_wrap=True, highlight=False)


def _say_made(line: Line, case: Case) -> None:
    """One line, for a comparison takes hours; `flows.comparison_jobs` shows those of its processes."""
    parts = {"seen": line.learning_tasks, "unseen": line.unseen}
    means = (f"{points(fmean(line.scores[name] for name in names))} {what}" for what, names in parts.items() if names)
    console.print(f"{MADE}{line.label}, {case.name}: {', '.join(means)}", highlight=False, markup=False, soft_wrap=True)
