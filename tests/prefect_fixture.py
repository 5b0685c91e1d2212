"""One real Prefect server for all tests that run flows."""

import os

import pytest

from flows.environment import DEFAULTS

for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def prefect_harness(tmp_path_factory):
    """An ephemeral server with a database and a result storage of its own."""
    from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    results = tmp_path_factory.mktemp("results")
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: results}),
    ):
        yield
