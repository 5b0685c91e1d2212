"""`python die_at_statement.py N`: make MLflow's database in this folder, and be killed before the N-th statement."""

import os
import signal
import sys

from sqlalchemy import event
from sqlalchemy.engine import Engine

if __name__ == "__main__":
    left = int(sys.argv[1])

    @event.listens_for(Engine, "before_cursor_execute")
    def count(*_):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    from tasks import registry

    registry.client()
