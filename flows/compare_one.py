"""One process of a comparison in several: what one label's results lack. Started by `flows.comparison_jobs`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flows.environment import set_defaults
from flows.one_sentence import errors_in_one_sentence
from recall.load_settings import load_settings


def main(arguments: dict[str, Any]) -> None:
    """Run the flow `compare` with these."""
    with errors_in_one_sentence(debug=False):
        settings = load_settings(Path(arguments["config"]), arguments["profile"], arguments["overrides"])
        set_defaults(settings.store)
        from prefect import tags

        from flows.compare import compare
        from flows.comparison_cases import Options
        from flows.orphans import process_tag

        with tags(process_tag()):
            compare(**arguments | {"options": Options.model_validate(arguments["options"])})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
