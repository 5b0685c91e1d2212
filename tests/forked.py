"""A process that imports once what `recall` imports, and forks itself for every command that a test runs.

Most of a tiny run's time is imports. A fork is a process of its own as any other, with its folder, environment, output
and exit code; only its hash seed is not its own, so a test of what two processes must agree on starts one anew. A
project that brings code of its own runs that.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

SOCKET = "RECALL_TEST_FORKS"  # the variable with its address
IMPORTS = [
    "flows.cli",
    "flows.continual_update",
    "recall.finetuning",
    "mlflow.transformers",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "transformers.models.llama.modeling_llama",
    "peft",
    "sklearn.cluster",
    "sacrebleu",
    "dvc.repo",
    "dvc.api",
]


def run(*command, folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *command])` with captured text; the command is a script, or -m flows.cli."""
    words, environment = list(map(str, command)), dict(environment or os.environ)
    if sys.platform != "linux":
        return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if SOCKET not in os.environ:
        start()
    with tempfile.TemporaryDirectory() as outputs, socket.socket(socket.AF_UNIX) as connection:
        files = [f"{outputs}/stdout", f"{outputs}/stderr"]
        request = {"command": words, "folder": str(folder), "environment": environment, "files": files}
        try:
            connection.connect(os.environ[SOCKET])
            connection.sendall(json.dumps(request).encode() + b"\n")
            code = connection.makefile().readline()
        except OSError:
            code = ""
        assert code, "the process that forks ended, or the one that waits for the command"
        return subprocess.CompletedProcess(words, int(code), *(Path(file).read_text() for file in files))


def start() -> None:
    """Start the process that forks, for this process and all that it starts; it ends with this one."""
    if sys.platform != "linux":
        return
    folder = tempfile.TemporaryDirectory()
    os.environ[SOCKET] = f"{folder.name}/socket"
    # No thread may be there to fork: neither OpenMP's nor the one that frees Arrow's memory.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.environ[SOCKET])
        listener.listen()
        number = listener.fileno()
        command = [sys.executable, __file__, str(number)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=environment, pass_fds=[number], **pipes)
    atexit.register(folder.cleanup)
    atexit.register(process.wait)
    atexit.register(process.kill)


def serve(listener: socket.socket) -> None:
    """Fork for every request; returns in the child, which goes on as if it had just been started."""
    import gc

    for name in IMPORTS:
        importlib.import_module(name)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "an import started a thread, which a fork would not have"
    gc.collect()
    gc.freeze()
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            answer(connection)
            return
        connection.close()
        os.waitpid(-1, os.WNOHANG)
    os._exit(0)


def answer(connection: socket.socket) -> None:
    """Fork once more, and send the exit code; returns in the child."""
    request = json.loads(connection.makefile().readline())
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    connection.close()
    become(request)


def become(request: dict) -> None:
    """Take on what a new process gets from the one that starts it."""
    for number, file in enumerate([os.devnull, *request["files"]]):
        opened = os.open(file, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = request["command"]
    from prefect.context import refresh_global_settings_context

    from flows.environment import set_defaults

    # Prefect reads its variables once, when it is imported: before that `recall` sets what is unset.
    set_defaults(Path(".store"), "--debug" in sys.argv)
    refresh_global_settings_context()


def forget_our_code() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in {"recall", "tasks", "flows"}]:
        del sys.modules[name]


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    if sys.argv[0] == "-m":
        sys.argv.pop(0)
        sys.path[0] = str(Path.cwd())
        if Path("flows").exists():
            forget_our_code()
        importlib.import_module(sys.argv[0]).main()
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
