"""The scripts of benchmarks/ as modules."""

import importlib
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def script(name):
    """One of them; they import each other by their names."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    return importlib.import_module(name)
