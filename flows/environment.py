"""Defaults for Prefect, MLflow and Hugging Face; set before any of them is imported, and only where unset."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULTS = {
    # Telemetry races SQLite ("database is locked"), and nobody was asked.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # A cold start of the embedded server on two cores takes longer than Prefect's 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Errors are ours to say, in one sentence; --debug shows Prefect's log too.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # One bar a stage is ours (recall.progress); MLflow would draw one for every small file it reads.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def set_defaults(store: Path, debug: bool = False) -> None:
    """Prefect's JSON results lie in the store, beside the artifacts that they refer to."""
    if debug:
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    for name, value in (DEFAULTS | {"PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(store.resolve() / "results")}).items():
        os.environ.setdefault(name, value)
