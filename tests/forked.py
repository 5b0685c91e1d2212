"""A process that imports once what `recall` imports, and forks itself for every command that a test runs.

Most of a tiny run's time is imports. A fork is a process of its own as any other, with its folder, environment, output
and exit code; only its hash seed is not its own, so a test of what two processes must agree on starts one anew.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTS = [
    "flows.cli",
    "flows.continual_update",
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
    with tempfile.TemporaryDirectory() as outputs:
        files = [f"{outputs}/stdout", f"{outputs}/stderr"]
        request = {"command": words, "folder": str(folder), "environment": environment, "files": files}
        process = _server()
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        code = process.stdout.readline()
        assert code, f"the process that forks ended with {process.wait()}"
        return subprocess.CompletedProcess(words, int(code), *(Path(file).read_text() for file in files))


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that forks; it ends with this one, at the end of its input."""
    # No thread may be there to fork: neither OpenMP's nor the one that frees Arrow's memory.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    command, pipe = [sys.executable, __file__], subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
    atexit.register(process.communicate)
    return process


def serve() -> None:
    """Fork for every line of the input; returns in the child, which goes on as if it had just been started."""
    import gc

    requests, codes = sys.stdin.buffer, os.dup(1)
    os.dup2(2, 1)  # whatever an import may print is no exit code
    for name in IMPORTS:
        importlib.import_module(name)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "an import started a thread, which a fork would not have"
    gc.collect()
    gc.freeze()
    for line in iter(requests.readline, b""):
        child = os.fork()
        if not child:
            os.close(codes)
            become(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        os.write(codes, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


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


if __name__ == "__main__":
    serve()
    if sys.argv[0] == "-m":
        sys.argv.pop(0)
        sys.path[0] = str(Path.cwd())
        importlib.import_module(sys.argv[0]).main()
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
