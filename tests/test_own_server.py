"""Prefect's embedded server is started ahead, once; what it was started for finds it, and it ends with the process."""

import os
import subprocess
import sys
import textwrap

import httpx
import pytest
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

from flows.environment import DEFAULTS
from flows.own_server import OwnServer


def run(code, environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def environment(prefect_harness, tmp_path, monkeypatch):
    """Of a process that has no server yet; its database has its tables, for to make them takes longest."""
    database = PREFECT_SERVER_DATABASE_CONNECTION_URL.value()
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    own = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
    return os.environ | DEFAULTS | own


def test_a_client_finds_the_server_that_was_started_ahead_and_it_ends_with_its_process(environment):
    code = """
        from flows.own_server import OwnServer
        server = OwnServer()
        server.start()
        server.wait()
        from prefect.client.orchestration import get_client
        from prefect.server.api.server import SubprocessASGIServer
        started = SubprocessASGIServer().server_process.pid
        with get_client(sync_client=True) as client:
            client.hello().raise_for_status()
            print(client.api_url, started, SubprocessASGIServer().server_process.pid)
    """
    url, ahead, used = run(code, environment)
    assert ahead == used
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}health")


def test_a_server_that_does_not_come_up_is_ended_and_what_prefect_says_of_it_is_raised(environment):
    code = """
        from flows.own_server import OwnServer
        server = OwnServer()
        server.start()
        from prefect.server.api.server import SubprocessASGIServer
        process = SubprocessASGIServer().server_process
        try:
            server.wait()
        except RuntimeError as error:
            print(process.poll() is not None, error)
    """
    too_short = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "1"}
    ended, *words = run(code, environment | too_short)
    assert ended == "True"
    assert words[:3] == ["Timed", "out", "while"]


def test_a_process_that_ends_at_once_leaves_no_server_and_does_not_crash(environment):
    code = """
        from flows.own_server import OwnServer
        server = OwnServer()
        server.start()
        from prefect.server.api.server import SubprocessASGIServer
        print(SubprocessASGIServer().server_process.pid)
    """
    (process,) = run(code, environment)
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


def test_where_a_server_is_named_none_is_started(prefect_harness):
    server = OwnServer()
    server.start()
    assert server.thread is None
    server.wait()
