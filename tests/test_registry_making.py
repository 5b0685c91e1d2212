"""MLflow's own SQLite file is made whole or not at all, whenever the process that makes it is killed."""

import signal
import sqlite3
from pathlib import Path

import pytest
from forked import run

DIE_AT = Path(__file__).parent / "die_at_statement.py"


def make(folder, statements):
    return run(DIE_AT, statements, folder=folder)


@pytest.mark.parametrize("statement", [25, 400])  # MLflow alone leaves a file that it can never open again
def test_a_kill_in_the_first_migrations_costs_nothing(tmp_path, statement):
    assert make(tmp_path, statement).returncode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    done = make(tmp_path, -1)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from experiments").fetchone() == (1,)
