"""One process of a comparison in several, which makes one result. Started by `flows.comparison_jobs`."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from threading import Thread
from typing import Any

from flows.environment import set_defaults
from flows.one_sentence import errors_in_one_sentence
from recall.errors import without_secrets
from recall.load_settings import load_settings


def main(arguments: dict[str, Any], parent: int) -> None:
    """Run the flow `make_one` with these; what goes wrong is said in a traceback, then in a sentence."""
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    with errors_in_one_sentence(debug=False):
        try:
            _compare(arguments)
        except Exception:
            print(without_secrets(traceback.format_exc()), file=sys.stderr)
            raise


def _compare(arguments: dict[str, Any]) -> None:
    settings = load_settings(Path(arguments["config"]), arguments["profile"], arguments["overrides"])
    set_defaults(settings.store)
    from prefect import tags

    from flows.compare import make_one
    from flows.comparison_cases import Options
    from flows.comparison_jobs import Missing
    from flows.orphans import process_tag

    only = Missing(*arguments["only"])
    named = make_one.with_options(flow_run_name=f"compare: {only}")
    with tags(process_tag()):
        named(**arguments | {"options": Options.model_validate(arguments["options"]), "only": only})


def _end_with(parent: int) -> None:
    """A parent that is killed cannot end this process, which would make what the same command makes again."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
