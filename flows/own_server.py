"""Prefect's embedded server, started ahead: it takes seconds of one core while this process has its own to do."""

from __future__ import annotations

from contextlib import suppress
from contextvars import copy_context
from threading import Thread


class OwnServer:
    """The server of this process; `start` returns at once, and does nothing where PREFECT_API_URL names one."""

    def __init__(self) -> None:
        self.thread: Thread | None = None

    def start(self) -> None:
        """Begin to start it."""
        from prefect.server.api.server import SubprocessASGIServer
        from prefect.settings import PREFECT_API_URL

        if PREFECT_API_URL.value():
            return
        context, server = copy_context(), SubprocessASGIServer()

        def start() -> None:
            # Prefect asks for its server again when it needs it, and then says what is wrong.
            with suppress(Exception):
                context.run(server.start)

        self.thread = Thread(target=start, name="prefect-server", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Until it answers: Prefect takes one that is still starting for one that runs."""
        if self.thread:
            self.thread.join()
