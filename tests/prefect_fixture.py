"""One real Prefect server for all tests that run flows, and projects whose runs go to it."""

import os

import pytest
from project import make_project

from flows.environment import DEFAULTS

for variable, value in DEFAULTS.items():
    os.environ.setdefault(variable, value)


@pytest.fixture(scope="session")
def prefect_harness(tmp_path_factory):
    """An ephemeral server with a database and a result storage of its own."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_RESULTS_LOCAL_STORAGE_PATH,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    results = tmp_path_factory.mktemp("results")
    with (
        prefect_test_harness(server_startup_timeout=120),
        # A flow run with a heartbeat ends by waiting for it, up to a second: as long as most flows of a test take.
        temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: results, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture(scope="session")
def new_project(tmp_path_factory, prefect_harness, tiny_tokenizer):
    """A function that makes a project whose runs go to the test's Prefect server."""
    from prefect.settings import PREFECT_API_URL

    def make(name):
        return make_project(tmp_path_factory.mktemp(name) / "project", tiny_tokenizer, PREFECT_API_URL.value())

    return make
