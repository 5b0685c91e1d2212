"""A comparison as a flow: every method in every case, through the stages of an update; nothing is registered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
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
from flows.preflight import Inputs, check_context, check_inputs, check_model, check_samples
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


@dataclass(frozen=True)
class Asked:
    """What a comparison is of: by case, its methods and the keys that the results file has of them."""

    options: Options
    stream: Stream
    variants: dict[Contender, Settings]
    wanted: dict[Case, dict[Contender, str]]

    @cached_property
    def data_sets(self) -> dict[str, DatasetRef]:
        """What is scored on; asked for where a result has to be made, and not at all where all are there."""
        return scored_on(begin(self.stream), self.options.split)


@flow(name="compare", flow_run_name="compare")
def compare(
    options: Options,
    config: str = "params.yaml",
    profile: str | None = None,
    overrides: list[str] | None = None,
    jobs: int = 1,
) -> State[dict[str, Any]]:
    """Make what the results file does not hold yet, and sum up all that was asked for; returns that as JSON.

    With `jobs` over 1 that many processes make it, each one result at a time (`make_one`).
    """
    asked = _asked(options, config, profile, overrides)
    if mend(options.results):
        console.print(f"{options.results}: half a line at its end, of a killed run, was cut off", soft_wrap=True)
    before = {line.key for line in read_lines(options.results)}
    every = {
        key: Missing(one.label, case.name, key) for case, keys in asked.wanted.items() for one, key in keys.items()
    }
    lacking = [result for key, result in every.items() if key not in before]
    if jobs > 1 and len(lacking) > 1:
        given = {"config": config, "profile": profile, "overrides": overrides or []}
        logs = asked.stream.settings.store / "logs"
        make_at_once(lacking, jobs, given | {"options": options.model_dump(mode="json")}, logs)
    found = {line.key: line for line in read_lines(options.results)}
    lines: list[Line] = []
    with stages(asked):
        for case, keys in asked.wanted.items():
            _say(case, sum(key in before for key in keys.values()), len(keys), options.results)
            for one, key in keys.items():
                if key not in found:
                    found[key] = _make(asked, case, one)
            ours = [found[key] for key in keys.values()]
            comparison_runs.log_case(asked.stream.settings.stream.name, case.name, ours)
            lines += ours
    made = len({line.key for line in lines} - before)
    said = f"{made} of {len(lines)} results made, the others found in {options.results}{of_two_types(lines)}"
    summaries = [summary.model_dump(mode="json") for summary in compare_lines(lines)]
    return Completed(
        message=said, data={"made": made, "found": len(lines) - made, "said": said, "comparisons": summaries}
    )


@flow(name="compare", flow_run_name="compare: one result")
def make_one(
    options: Options,
    only: Missing,
    config: str = "params.yaml",
    profile: str | None = None,
    overrides: list[str] | None = None,
) -> State[None]:
    """Make one result of a comparison, for a process of several.

    Raises:
        BadInput: settings or data have changed meanwhile, so that the comparison has no such result any more.
    """
    asked = _asked(options, config, profile, overrides)
    for case, keys in asked.wanted.items():
        for one, key in keys.items():
            if key == only.key:
                if all(line.key != key for line in read_lines(options.results)):
                    with stages(asked):
                        _make(asked, case, one)
                return Completed(message=f"{only} is in {options.results}")
    raise BadInput(f"{only}: settings or data have changed since the comparison began; run the same again")


def _asked(options: Options, config: str, profile: str | None, overrides: list[str] | None) -> Asked:
    settings = load_settings(Path(config), profile, overrides)
    variants = read_variants(options, Path(config), profile, overrides or [])
    stream = open_stream(settings, check_comparison(settings, options, variants, []))
    wanted = {}
    for case in all_cases(settings, options):
        own = contenders(case, options, variants)
        keys = [identity(stream, case, one, variants.get(one, settings), options.split)["key"] for one in own]
        wanted[case] = dict(zip(own, keys, strict=True))
    return Asked(options, stream, variants, wanted)


@contextmanager
def stages(asked: Asked) -> Iterator[None]:
    """Inside, stages run where the settings say."""
    settings = asked.stream.settings
    with untagged_tasks(), workers(settings.runner, settings.threads, asked.stream.store.root):
        yield


def _make(asked: Asked, case: Case, contender: Contender) -> Line:
    own = asked.variants.get(contender, asked.stream.settings)
    line = make_line(asked.stream, case, contender, own, asked.options.split, asked.data_sets)
    append(asked.options.results, line)
    _say_made(line, case)
    return line


def of_two_types(lines: list[Line]) -> str:
    """A clause where machines that calculate in different types made the lines, whose differences may be theirs."""
    types = sorted({str(line.machine.get("dtype", "a type not recorded")) for line in lines})
    return f"; made in {' and '.join(types)}, so part of a difference may be the machines'" if len(types) > 1 else ""


def check_comparison(
    settings: Settings, options: Options, variants: dict[Contender, Settings], take_in: list[str]
) -> Inputs:
    """All that can be checked before the first training step; see `check_inputs`.

    Raises:
        BadInput: anything that would make the comparison fail or mislead, in one sentence.
    """
    check_methods(options, settings, variants)
    list(all_cases(settings, options))  # there are as many orders as were asked for
    check_writable(options.results)
    read_lines(options.results)
    inputs = check_inputs(settings, take_in)
    if options.split == "validation":
        for name in settings.stream.unseen:
            read_rows(settings.task_folder(name) / "validation.jsonl", settings.learning_tasks[name])
    for changed in variants.values():
        check_samples(changed)
        check_context(changed)
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
