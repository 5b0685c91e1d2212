"""A small but real project in a folder of its own: Git, DVC with a local remote, three learning tasks, a tiny model."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import forked
import tiny
import torch
import yaml
from filelock import FileLock
from mlflow import MlflowClient

TEMPLATE = "RECALL_TEST_TEMPLATE"  # the variable with the folder of the project that is copied
NAMES = ["Austria", "Belgium", "Chile", "Denmark", "Egypt", "Finland", "Greece", "Hungary", "Iceland", "Jordan"]
ENDINGS = {"French": "ie", "Spanish": "ia"}


def translation(language, start, count):
    rows = [f"{NAMES[i % 10]} {i}" for i in range(start, start + count)]
    return [{"id": n, "prompt": f"English: {n}\n{language}:", "target": n + ENDINGS[language]} for n in rows]


def sentiment(words, start, count):
    numbers = range(start, start + count)
    return [
        {"id": str(i), "prompt": f"Review: it is {'very ' * (i % 4)}good {i}\nSentiment:", "target": words[i % 2]}
        for i in numbers
    ]


def choice(start, count):
    rows = []
    for i in range(start, start + count):
        choices = [NAMES[(i + step) % 10] for step in (1, 2, 3)]
        rows.append({"id": str(i), "prompt": f"Name {i}\nAnswer:", "target": choices[i % 3], "choices": choices})
    return rows


DATA = {
    "names": lambda start, count: translation("French", start, count),
    "reviews": lambda start, count: sentiment(["bad", "good"], start, count),
    "countries": choice,
    "films": lambda start, count: sentiment(["poor", "great"], start, count),
    "spanish": lambda start, count: translation("Spanish", start, count),
}
SPECS = {
    "names": {"kind": "translation", "metric": "chrf"},
    "reviews": {"kind": "classification", "metric": "accuracy", "labels": ["bad", "good"]},
    "countries": {"kind": "multiple_choice", "metric": "accuracy"},
    "films": {"kind": "classification", "metric": "accuracy", "labels": ["poor", "great"]},
    "spanish": {"kind": "translation", "metric": "chrf"},
}
SPLITS = {"train": (0, 24), "validation": (100, 4), "test": (200, 6)}


class Project:
    """The project's folder, and the `recall` command run in it."""

    def __init__(self, folder: Path, api_url: str | None = None) -> None:
        self.folder = folder
        self.environment = os.environ | {"OMP_NUM_THREADS": "1"}
        # The command sets it for itself, and so it does where a test calls it in this process.
        self.environment.pop("PREFECT_RESULTS_LOCAL_STORAGE_PATH", None)
        if api_url:
            self.environment["PREFECT_API_URL"] = api_url

    def recall(self, *arguments, expect=0):
        """Run `recall` in a process of its own; returns the finished process."""
        return self.forked("-m", "flows.cli", *arguments, expect=expect)

    def forked(self, *arguments, expect=0):
        """As `python`, for a script or -m flows.cli, in a process that has its imports already."""
        return _expected(forked.run(*arguments, folder=self.folder, environment=self.environment), expect)

    def script(self, *arguments, expect=0):
        """Run `recall` as a person would."""
        return self._start(Path(sys.executable).with_name("recall"), *arguments, expect=expect)

    def python(self, *arguments, expect=0):
        return self._start(sys.executable, *arguments, expect=expect)

    def _start(self, *command, expect):
        words = list(map(str, command))
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        return _expected(done, expect)

    def run(self, *arguments):
        """`recall run --json`, parsed."""
        return json.loads(self.recall("run", "--json", *arguments).stdout)

    def git(self, *arguments):
        subprocess.run(["git", *arguments], cwd=self.folder, check=True, capture_output=True)

    def dvc(self, *arguments):
        return self.python("-m", "dvc", *arguments).stdout

    def commit(self, message="change"):
        self.git("add", "--all")
        self.git("-c", "user.name=Test", "-c", "user.email=test@example.org", "commit", "--quiet", "-m", message)

    def dvc_hash(self, path):
        """What DVC itself says of a tracked folder."""
        return yaml.safe_load((self.folder / f"{path}.dvc").read_text())["outs"][0]["md5"]

    def head(self):
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def params(self, change):
        """Change params.yaml by `change(values)`."""
        file = self.folder / "params.yaml"
        values = yaml.safe_load(file.read_text())
        change(values)
        file.write_text(yaml.safe_dump(values, sort_keys=False))

    def write_data(self, name, **splits):
        """The splits of a learning task, as `dvc repro` would leave them."""
        folder = self.folder / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, (start, count) in (SPLITS | splits).items():
            lines = [json.dumps(row) for row in DATA[name](start, count)]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    def artifacts(self, kind):
        """Fingerprint to time of making of every artifact of a kind."""
        folder = self.folder / ".store" / kind
        return {path.name: (path / "manifest.json").stat().st_mtime_ns for path in folder.glob("[!.]*")}


def _expected(done, code):
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def make_project(folder: Path, tokenizer, api_url: str | None = None) -> Project:
    """A project that is committed, and whose data is pushed: a copy of one that is made once."""
    if TEMPLATE not in os.environ:
        share_template()
    template = Path(os.environ[TEMPLATE]) / "project"
    with FileLock(f"{template}.lock"):
        if not template.exists():
            making = template.with_name("making")
            shutil.rmtree(making, ignore_errors=True)
            _make(making, tokenizer)
            making.rename(template)
    shutil.copytree(template, folder, symlinks=True, dirs_exist_ok=True)
    return Project(folder, api_url)


def share_template() -> None:
    """Let this process and all that it starts copy the same project, which the first that needs it makes."""
    os.environ[TEMPLATE] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ[TEMPLATE])


def _make(folder: Path, tokenizer) -> None:
    project = Project(folder)
    for name in DATA:
        project.write_data(name)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "bos_token_id": 0, "eos_token_id": 0}
    tiny.llama(folder / "data" / "base_model", dtype=torch.bfloat16, **shape)
    tokenizer.save_pretrained(folder / "data" / "base_model")
    settings = {
        "stream": {"name": "tiny", "learning_tasks": ["names", "reviews", "countries"], "unseen": ["films", "spanish"]},
        "base_model": {"folder": "data/base_model"},
        "learning_tasks": {name: spec | {"source": {"path": "made by the test"}} for name, spec in SPECS.items()},
        "finetuning": {
            "epochs": 2,
            "batch_size": 4,
            "checkpoint_steps": 5,
            "learning_rate": 0.01,
            "lora": {"r": 4, "alpha": 8},
        },
        "sampling": {"clusters": 5},
        "evaluation": {"max_new_tokens": 4},
        "threads": 1,
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (folder / ".gitignore").write_text(".store/\n.dvc-remote/\nmlflow.db*\nmlartifacts/\nreports/\n")
    # Its making has a test of its own (test_registry_making.py) and takes as long as a small update.
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments(max_results=1)
    project.git("init", "--quiet")
    project.dvc("init", "--quiet")
    project.dvc("config", "core.analytics", "false")
    project.dvc("remote", "add", "--quiet", "--default", "local", ".dvc-remote")
    project.dvc("add", "--quiet", *(f"data/{name}" for name in ["base_model", *DATA]))
    project.dvc("push", "--quiet")
    project.commit("start")
