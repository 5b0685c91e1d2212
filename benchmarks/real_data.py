"""Write a settings file for a folder of small real data sets, so that `recall compare` can run on them.

    python benchmarks/real_data.py FOLDER [--out params-real.yaml] [--rows train=200,validation=50,test=100]

FOLDER has a folder a learning task, with `card.json` (kind, metric, labels, licence) and `train.jsonl`,
`validation.jsonl` and `test.jsonl` (rows of id, prompt, target, references). A learning task that is not there may be
one of params.yaml, with its rows, as `--unseen agnews boolq film_reviews`. The rest of the settings is params.yaml's,
but for a learning rate that is not set high on purpose and room for a translated sentence. Then, in a clone:

    make data                              # the base model, tracked by DVC
    for name in sst2 squad_v2 iwslt_enfr dream medmcqa agnews boolq; do
        python -m recall.prepare task $name --config params-real.yaml
    done
    recall compare --config params-real.yaml --take-in sst2 --take-in squad_v2 --take-in iwslt_enfr \\
        --take-in dream --take-in medmcqa --take-in agnews --take-in boolq

`--take-in` is needed once: it makes DVC track what lies in `data/NAME` (and pushes it to your remote). The settings
file and the data stay out of Git; mind the licences on the cards.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from recall.errors import BadInput, Failed
from recall.learning_tasks import SPLITS
from recall.load_settings import load_settings
from recall.settings import Settings
from recall.text_files import write_text

STREAM = ("sst2", "squad_v2", "iwslt_enfr", "dream", "medmcqa")
UNSEEN = ("agnews", "boolq")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("params-real.yaml"))
    parser.add_argument("--rows", default="train=200,validation=50,test=100", help="at most so many of each split")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="where the other settings come from")
    parser.add_argument("--stream", nargs="+", default=list(STREAM), help="learning tasks in their order")
    parser.add_argument("--unseen", nargs="*", default=list(UNSEEN), help="learning tasks that are only evaluated")
    given = parser.parse_args(arguments)
    try:
        values = settings(given.folder, given.params, given.stream, given.unseen, rows_of(given.rows))
        head = "# Written by benchmarks/real_data.py, which says how to go on.\n\n"
        write_text(given.out, head + yaml.safe_dump(values, sort_keys=False))
        ours = [name for name in values["learning_tasks"] if not (given.folder / name).is_dir()]
        if ours:
            print(f"not in {given.folder}, so as {given.params} has them: {', '.join(ours)}")
    except (BadInput, Failed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    return 0


def settings(folder: Path, params: Path, stream: list[str], unseen: list[str], rows: dict[str, int]) -> dict[str, Any]:
    """The values of params.yaml with the learning tasks of `folder`, and those of its own that are asked for."""
    if not params.is_file():
        raise BadInput(f"--params {params} is no file; name the settings file that the other settings come from")
    load_settings(params)  # so that what is wrong below comes from the data sets and the options
    values: dict[str, Any] = yaml.safe_load(params.read_text(encoding="utf-8"))
    values["stream"] = {"name": "real-data", "learning_tasks": stream, "unseen": unseen}
    own = {name: spec for name, spec in values.get("learning_tasks", {}).items() if not (folder / name).is_dir()}
    values["learning_tasks"] = {
        name: own[name] if name in own else learning_task(folder / name, rows) for name in [*stream, *unseen]
    }
    values["finetuning"] = values.get("finetuning", {}) | {"learning_rate": 5e-4}
    values["evaluation"] = values.get("evaluation", {}) | {"max_new_tokens": 48}
    try:
        Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))} {first['msg'].removeprefix('Value error, ')}".strip()
        raise BadInput(f"{folder} makes no settings: {problem}; see its cards, --stream and --unseen") from error
    return values


def learning_task(folder: Path, rows: dict[str, int]) -> dict[str, Any]:
    """A `TaskSpec` out of a data set's card."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        spec = {"kind": card["kind"], "metric": card["metric"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder}/card.json is no data set's card ({error}); see this script's --help") from error
    spec |= {"labels": card["labels"]} if card.get("labels") else {}
    source = {"path": str(folder), "licence": card.get("licence", "not stated"), "notes": card.get("notes", "")}
    return spec | {"source": source, "rows": dict(rows)}


def rows_of(text: str) -> dict[str, int]:
    """`train=200,validation=50,test=100` as numbers."""
    try:
        found = {name: int(number) for name, _, number in (part.partition("=") for part in text.split(","))}
    except ValueError as error:
        raise BadInput(f"--rows {text}: expected train=200,validation=50,test=100") from error
    if set(found) != set(SPLITS) or min(found.values()) < 1:
        raise BadInput(f"--rows {text}: give a positive number for each of {', '.join(SPLITS)}")
    return found


if __name__ == "__main__":
    sys.exit(main())
