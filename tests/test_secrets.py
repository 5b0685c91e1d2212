"""Secrets come from the environment and stay there: not in what a run prints, keeps, registers or fails with."""

import json
import os
import shutil
from pathlib import Path

import pytest
from project import Project
from test_pickles import PICKLES, WATCHED, plant

from recall.errors import without_secrets
from tasks import registry

SECRET = "pl4nted"
# Where nothing listens: what needs the variable must fail, or not be asked.
NOWHERE = "127.0.0.1:9"
ENVIRONMENT = {
    "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-mlflow",
    "MLFLOW_TRACKING_TOKEN": f"{SECRET}-mlflow-token",
    "PREFECT_API_AUTH_STRING": f"admin:{SECRET}-prefect",
    "PREFECT_API_KEY": f"{SECRET}-prefect-key",
    "AWS_ACCESS_KEY_ID": "recall",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-aws",
    "HF_TOKEN": f"hf_{SECRET}",
    "OPENAI_API_KEY": f"sk-{SECRET}",
}


@pytest.fixture(scope="module")
def finished(new_project, tmp_path_factory):
    """A project with secrets and pickles planted all over it, after a whole run; its output, what it unpickled, and the
    file that a pickle that ran would have made."""
    project = new_project("secrets")
    folder, proof = project.folder, tmp_path_factory.mktemp("proof") / "ran"
    stream = {"learning_tasks": ["reviews"], "unseen": []}
    project.params(lambda values: values["stream"].update(stream) or values.update(baselines=[]))
    for name in PICKLES:
        plant(folder / "data" / "base_model" / name, proof)
    project.dvc("add", "--quiet", "data/base_model")
    project.dvc("push", "--quiet", "data/base_model")
    project.git("remote", "add", "origin", f"https://user:{SECRET}-git@{NOWHERE}/recall.git")
    project.dvc("remote", "add", "--quiet", "other", f"https://user:{SECRET}-dvc@{NOWHERE}/data")
    project.dvc("remote", "modify", "--quiet", "--local", "other", "password", f"{SECRET}-dvc-password")
    project.commit("plants")
    project.environment |= ENVIRONMENT
    report = folder.parent / "unpickled.json"
    done = project.python(WATCHED, report, "run", "--debug")
    return project, done.stdout + done.stderr, json.loads(report.read_text()), proof


@pytest.mark.slow
def test_nothing_that_a_run_prints_has_a_secret(finished):
    assert SECRET not in finished[1]


@pytest.mark.slow
def test_nothing_that_a_run_writes_has_a_secret(finished):
    """The store with Prefect's results, the report, MLflow's database and artifacts."""
    folder = finished[0].folder
    own = [folder / name for name in (".store", "reports", "mlartifacts", "mlflow.db")]
    files = [file for place in own for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]
    assert len(files) > 50
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


@pytest.mark.slow
def test_prefects_server_holds_no_secret(finished):
    """Its database: parameters, states with their messages, logs, artifacts."""
    from prefect.settings import PREFECT_HOME, PREFECT_SERVER_DATABASE_CONNECTION_URL

    url = PREFECT_SERVER_DATABASE_CONNECTION_URL.value() or ""
    database = Path(url.partition(":///")[2]) if ":///" in url else Path(PREFECT_HOME.value()) / "prefect.db"
    files = [file for file in database.parent.glob(f"{database.name}*") if file.is_file()]
    assert files
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


@pytest.mark.slow
def test_no_planted_pickle_ran(finished):
    assert not finished[3].exists()


@pytest.mark.slow
def test_a_run_unpickles_nothing(finished):
    """Every class that a pickle named, and every `torch.load`, in the whole run; the first is the watch's own."""
    control, *others = finished[2]
    assert control[0] == "find_class" and control[2] == "control"
    assert others == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@{NOWHERE}"),
        ("MLFLOW_TRACKING_URI", f"postgresql://user:{SECRET}@{NOWHERE}/mlflow"),
    ],
)
@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_error_of_a_server_that_does_not_answer_has_no_secret(finished, tmp_path, variable, value, debug):
    project = Project(finished[0].folder)
    shutil.copy(project.folder / "params.yaml", tmp_path)
    project.environment |= {variable: value, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    code = (
        "import mlflow.store.db.utils as u; u.MAX_RETRY_COUNT = 1\n"
        "import sys; from flows.cli import main; sys.argv = ['recall', *sys.argv[1:]]; main()"
    )
    done = project.python("-c", code, "run", *debug, expect=2)
    said = done.stdout + done.stderr
    assert SECRET not in said
    assert "MLflow's store" in said and NOWHERE in said


def test_user_and_password_of_the_trackings_address_go_to_variables_of_their_own(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    assert registry._without_credentials("https://me:p%40ss@example.org:5000/x") == "https://example.org:5000/x"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "p@ss"
    assert registry._without_credentials("sqlite:////tmp/a@b.db") == "sqlite:////tmp/a@b.db"


def test_messages_lose_what_is_secret_and_nothing_else(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "abcdef123")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert without_secrets("s3://key:word@host/a failed: abcdef123") == "s3://***@host/a failed: ***"
    assert without_secrets("a file /data/me@home, mail a@b.c") == "a file /data/me@home, mail a@b.c"


def test_a_word_that_only_names_a_secret_or_its_place_stays_in_a_sentence(monkeypatch):
    """docs/production.md calls its key of S3 `recall`."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "recall",
        "HF_TOKEN_PATH": "/home/me/token",
        "POSTGRES_PASSWORD_FILE": "/run/secrets/postgres",
        "TOKENIZERS_PARALLELISM": "memory",
    }.items():
        monkeypatch.setenv(name, value)
    said = "no report; make one with `recall run`, for which memory, /home/me/token and /run/secrets/postgres do"
    assert without_secrets(said) == said


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCESS_KEY", "VAULT_SECRET_ID", "TOKENIZER_API_KEY", "AUTH_TOKENS"]
)
def test_every_variable_that_may_be_a_secret_is_one(name, monkeypatch):
    monkeypatch.setenv(name, "abcdef123")
    assert without_secrets("abcdef123 is refused") == "*** is refused"
