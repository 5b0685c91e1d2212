"""A run against PostgreSQL, S3, MLflow and Prefect as docs/production.md sets them up, each asking for its password."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import botocore
import httpx
import psycopg2
import pytest
from project import Project, make_project

pytestmark = pytest.mark.server
PROJECT = Path(__file__).parent.parent
AUTHOR = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def documented(servers, project, *names):
    """Run documented commands in a project, as one who has the users' keys; returns what they print."""
    command = servers.documented(*names)
    done = subprocess.run(
        command, cwd=project.folder, env=project.environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def environment(servers):
    """What a person's shell has; the scripts of the environment that runs the tests, and the code under test."""
    path = f"{Path(sys.executable).parent}:{servers.environment['PATH']}"
    return servers.environment | AUTHOR | {"OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(PROJECT)}


@pytest.fixture(scope="module")
def project(servers, tmp_path_factory, tiny_tokenizer):
    """One learning task, taken in by the page's own commands; `printed` is what they said."""
    made = make_project(tmp_path_factory.mktemp("production") / "project", tiny_tokenizer)
    stream = {"name": "production", "learning_tasks": ["reviews"], "unseen": ["films"]}
    (made.folder / "mlflow.db").unlink()
    made.params(lambda values: values.update(stream=stream, baselines=[]))
    made.commit("one learning task")
    made.environment = environment(servers)
    made.printed = documented(servers, made, "first-run")
    return made


@pytest.fixture(scope="module")
def registry(servers):
    """GET of MLflow's REST interface, with the pipeline's user."""

    def get(path, **query):
        login = (servers.clients["MLFLOW_TRACKING_USERNAME"], servers.clients["MLFLOW_TRACKING_PASSWORD"])
        url = f"{servers.clients['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}"
        answer = httpx.get(url, params=query, auth=login, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return get


def bucket(servers, name):
    """Every key in a bucket."""
    keys = {key: servers.clients[f"AWS_{key.upper()}"] for key in ("access_key_id", "secret_access_key")}
    s3 = boto3.client(
        "s3",
        endpoint_url=servers.clients["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        **{f"aws_{key}": value for key, value in keys.items()},
    )
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=name)
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def test_a_run_registers_a_version_whose_files_are_on_s3(servers, project, registry):
    version = registry("model-versions/get", name="production", version="1")["model_version"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert "registered as models:/production/1" in project.printed
    assert tags["recall.draft"] == "false", tags["recall.draft_because"]
    artifacts = bucket(servers, "mlflow")
    assert [key for key in artifacts if key.endswith("/model.safetensors")]
    assert [key for key in artifacts if key.endswith(f"{tags['recall.run_id']}/artifacts/lineage.json")]
    assert not (project.folder / "mlflow.db").exists()
    assert not (project.folder / "mlartifacts").exists()


def test_the_same_run_again_says_that_nothing_is_new(servers, project):
    clients = project.environment | servers.clients
    again = subprocess.run(
        ["recall", "run"], cwd=project.folder, env=clients, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0, again.stderr
    assert "nothing new: every update was registered before" in again.stdout


def test_another_machine_has_the_commit_alone_and_goes_on_from_the_registry(servers, project, registry):
    there = Project(project.folder.parent / "elsewhere" / "clone")
    there.environment = project.environment
    project.git("clone", "--quiet", str(project.folder), str(there.folder))
    there.params(lambda values: values["stream"].update(learning_tasks=["reviews", "names"]))
    there.commit("a second learning task")
    printed = documented(servers, there, "another-machine")
    assert "update 1, reviews: already version 1" in printed
    assert "update 1: merged comes back from the registry" in printed
    assert "1 of 2 updates made" in printed
    newest = registry("registered-models/alias", name="production", alias="challenger")["model_version"]
    assert newest["version"] == "2"


def test_every_server_refuses_those_without_its_password(servers, project):
    clients = servers.clients
    assert httpx.get(f"{clients['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search").status_code == 401
    assert httpx.post(f"{clients['PREFECT_API_URL']}/flow_runs/filter", json={}).status_code == 401
    artifact = next(key for key in bucket(servers, "mlflow") if key.endswith("update.json"))
    assert httpx.get(f"{clients['AWS_ENDPOINT_URL']}/mlflow/{artifact}").status_code == 403
    unsigned = botocore.config.Config(signature_version=botocore.UNSIGNED)
    with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
        s3 = boto3.client("s3", endpoint_url=clients["AWS_ENDPOINT_URL"], region_name="us-east-1", config=unsigned)
        s3.list_objects_v2(Bucket="dvc")
    # The servers inside the S3 server.
    assert httpx.get(f"http://127.0.0.1:{servers.ports['8888']}/buckets/mlflow/{artifact}").status_code == 401
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(host="127.0.0.1", port=servers.ports["5432"], user="mlflow", dbname="mlflow", password="guess")


def test_the_pipeline_is_no_administrator_of_mlflow(servers):
    login = (servers.clients["MLFLOW_TRACKING_USERNAME"], servers.clients["MLFLOW_TRACKING_PASSWORD"])
    url = f"{servers.clients['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users/create"
    assert httpx.post(url, json={"username": "x", "password": "long enough, certainly"}, auth=login).status_code == 403


def test_all_of_them_listen_on_127_0_0_1_alone(servers):
    heard = {
        connection.laddr.ip
        for process in servers.processes()
        for connection in process.net_connections(kind="inet")
        if connection.status == "LISTEN"
    }
    assert heard == {"127.0.0.1"}


def test_no_secret_is_in_a_file_of_the_project_nor_in_an_argument_nor_in_what_was_registered(
    servers, project, registry
):
    secrets = servers.secrets()
    assert len(secrets) >= 12
    arguments = json.dumps([process.cmdline() for process in servers.processes()])
    told = json.dumps([registry("model-versions/search"), registry("experiments/search", max_results=100)])
    text = {"arguments": arguments, "registry": told, "output": project.printed}
    files = [file for file in project.folder.rglob("*") if file.is_file()]
    text |= {str(file): file.read_bytes().decode("utf-8", "replace") for file in files}
    text |= {file.name: file.read_text(errors="replace") for file in servers.folder.glob("*.log")}
    found = [(place, name) for place, content in text.items() for name, value in secrets.items() if value in content]
    assert found == []
    for file in ("clients.env", "servers.env"):
        assert (servers.folder / file).stat().st_mode & 0o077 == 0
    assert os.environ.get("MLFLOW_TRACKING_PASSWORD") is None
