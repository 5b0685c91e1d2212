"""MLflow's record of a comparison: one run a case, in an experiment beside the stream's own."""

from __future__ import annotations

import re

from recall.comparison_line import Line
from recall.comparison_measures import measures, score_of
from tasks import registry
from tasks.refs import digest

CASE = "recall.case_key"


def log_case(stream: str, name: str, lines: list[Line]) -> None:
    """Log a case's methods with their measures and lines, once; what a killed process left open is completed."""
    from mlflow.entities import Metric, Param

    experiment, key = f"{stream}.compare", digest(sorted(line.key for line in lines))
    client, runs = registry.client(), registry.runs_with(experiment, {CASE: key})
    if any(run.info.status == "FINISHED" for run in runs):
        return
    if runs:
        run_id = str(runs[0].info.run_id)
    else:
        run_id = str(client.create_run(registry.experiment(experiment), tags={CASE: key}, run_name=name).info.run_id)
    first, now = lines[0], registry.now_ms()
    about = {
        "setting": first.setting,
        "seed": first.seed,
        "order": first.order,
        "learning_tasks": ", ".join(first.learning_tasks),
        "unseen": ", ".join(first.unseen),
        "split": first.split,
        "base_model": first.base_model,
        "code_commit": first.code_commit,
    }
    params = [Param(name, str(value)) for name, value in about.items()]
    found = [
        Metric(_plain(f"{line.label}/{measure}"), value, now, 0)
        for line in lines
        for measure, value in measures(line.setting, [line], score_of).items()
    ]
    for start in range(0, len(found), 1000):
        client.log_batch(run_id, metrics=found[start : start + 1000], params=params if start == 0 else ())
    client.log_text(run_id, "".join(line.model_dump_json() + "\n" for line in lines), "lines.jsonl")
    client.set_terminated(run_id, "FINISHED")


def _plain(name: str) -> str:
    """With the characters that MLflow allows in a metric's name."""
    return re.sub(r"[^\w .:/-]", " ", name)
