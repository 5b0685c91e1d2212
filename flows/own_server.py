"""Prefect's embedded server, started ahead: it takes seconds of one core while this process has its own to do."""

from __future__ import annotations

import time
from contextvars import copy_context
from threading import Thread


class OwnServer:
    """The server of this process; none where PREFECT_API_URL names one, or the settings forbid it."""

    def __init__(self) -> None:
        self.thread: Thread | None = None
        self.error: Exception | None = None

    def start(self) -> None:
        """Begin to start it; returns once its process is there, so that an end of this one ends it too."""
        from prefect.server.api.server import SubprocessASGIServer
        from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED

        if PREFECT_API_URL.value() or not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
            return
        context, server = copy_context(), SubprocessASGIServer()

        def start() -> None:
            try:
                context.run(server.start)
            except Exception as error:
                self.error = error
                server.stop()

        self.thread = Thread(target=start, name="prefect-server", daemon=True)
        self.thread.start()
        while self.thread.is_alive() and server.server_process is None:
            time.sleep(0.01)

    def wait(self) -> None:
        """Until it answers: Prefect takes one that is still starting for one that runs.

        Raises:
            RuntimeError: it does not come up, in Prefect's words.
        """
        if self.thread:
            self.thread.join()
        if self.error:
            raise self.error
