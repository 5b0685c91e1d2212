"""`accelerate launch ... -m recall.finetune_job`: one fine-tuning over several processes (docs/distributed.md)."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from recall.errors import BadInput, Failed
from recall.learning_tasks import read_rows
from recall.load_settings import load_settings


def main(arguments: list[str] | None = None) -> None:
    """Fine-tune a full checkpoint on rows of prompt and target, and write one LoRA adapter."""
    parser = argparse.ArgumentParser(prog="recall.finetune_job", description=main.__doc__)
    parser.add_argument("--start", type=Path, required=True, help="a full checkpoint, a Hugging Face folder")
    parser.add_argument("--rows", type=Path, required=True, help="train.jsonl of a learning task")
    parser.add_argument("--out", type=Path, required=True, help="where the adapter goes; must not exist")
    parser.add_argument(
        "--work", type=Path, help="checkpoints to go on from, which stay; by default OUT.work, which goes"
    )
    parser.add_argument("--config", type=Path, default=Path("params.yaml"), help="its section finetuning is read")
    parser.add_argument("--profile", help="lay profiles/NAME.yaml over the settings")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except (BadInput, Failed, OSError) as error:
        print(f"recall.finetune_job: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 1)


def _run(given: argparse.Namespace) -> None:
    settings = load_settings(given.config, given.profile, given.overrides).finetuning.plain
    rows = read_rows(given.rows)
    if given.out.exists():
        raise BadInput(f"{given.out} is there already; name another folder with --out")
    from recall.checkpoints import Checkpoint, check_checkpoint
    from recall.finetuning import finetune

    check_checkpoint(given.start)
    work = given.work or given.out.with_name(f"{given.out.name}.work")
    # The first process alone writes; a killed one leaves this behind, which the next writes over.
    partial = given.out.with_name(f".{given.out.name}.partial")
    try:
        finetune(Checkpoint(given.start), rows, settings, partial, work)
        if os.environ.get("RANK", "0") == "0":
            partial.rename(given.out)
            if given.work is None:
                shutil.rmtree(work, ignore_errors=True)  # OUT is made, whatever becomes of this
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise Failed(f"{given.out} was not made ({error}); the same command goes on from {work}") from error


if __name__ == "__main__":
    main()
