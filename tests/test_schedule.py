"""The deployment of prefect.yaml on a real server: its schedule makes runs (one wrong pin, and it never does)."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.server
PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Environment of commands that talk to a fresh `prefect server`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    log = (home / "server.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: healthy(environment), "the server answers", (home / "server.log").read_text)
        yield environment
    finally:
        process.terminate()
        process.wait(timeout=60)


def healthy(environment):
    try:
        return httpx.get(environment["PREFECT_API_URL"] + "/health").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition, what, log):
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within 180 s\n{log()}"
        time.sleep(0.5)


def prefect(environment, *arguments):
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_weekly_update_is_scheduled(server):
    prefect(server, "work-pool", "create", "recall", "--type", "process")
    prefect(server, "deploy", "--all")

    def scheduled():
        query = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "limit": 10}
        return httpx.post(server["PREFECT_API_URL"] + "/flow_runs/filter", json=query).json()

    wait_for(scheduled, "a scheduled run", lambda: "")
    runs = scheduled()
    assert {run["parameters"]["config"] for run in runs} == {"params.yaml"}
    deployments = httpx.post(server["PREFECT_API_URL"] + "/deployments/filter", json={}).json()
    (deployment,) = deployments
    assert deployment["entrypoint"] == "flows/continual_update.py:continual_update"
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    results = deployment["job_variables"]["env"]["PREFECT_RESULTS_LOCAL_STORAGE_PATH"]
    assert results == f"{PROJECT}/.store/results"
