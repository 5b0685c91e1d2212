"""MLflow's own SQLite file is made whole or not at all, whenever the process that makes it is killed."""

import signal
import sqlite3
import subprocess
import sys

import pytest

DIE_AT = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine

left = int(sys.argv[1])

@event.listens_for(Engine, "before_cursor_execute")
def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

from tasks import registry
registry.client()
"""


def make(folder, statements):
    return subprocess.run([sys.executable, "-c", DIE_AT, str(statements)], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("statement", [25, 400])  # MLflow alone leaves a file that it can never open again
def test_a_kill_in_the_first_migrations_costs_nothing(tmp_path, statement):
    assert make(tmp_path, statement).returncode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    done = make(tmp_path, -1)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from experiments").fetchone() == (1,)
