"""What Git and DVC know of the data, against a real DVC in a real Git repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recall.errors import BadInput, Failed
from tasks import data_versions
from tasks.audit_data import _tracked_at

DVC = [sys.executable, "-m", "dvc"]
STAGE = """
stages:
  bring:
    cmd: python -c "open('data/sources', 'w').write('1')"
    outs: [data/sources]
  prepare:
    foreach: {made: 1}
    do:
      cmd: python make.py
      deps: [make.py, data/sources]
      params: [rows]
      outs:
        - data/${key}: {persist: true}
"""
MAKE = """
from pathlib import Path
taken_in = Path("data/taken_in.txt")
if taken_in.exists() and "made" in taken_in.read_text().split():
    raise SystemExit(0)
Path("data/made/été").mkdir(parents=True, exist_ok=True)
Path("data/made/train.jsonl").write_text("1\\n")
Path("data/made/été/test.jsonl").write_text("2\\n")
"""


def command(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(arguments, cwd=folder, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git and DVC repository with a default remote and one stage, whose output was made and pushed."""
    root = tmp_path_factory.mktemp("template") / "project"
    (root / "data").mkdir(parents=True)
    (root / "dvc.yaml").write_text(STAGE)
    (root / "make.py").write_text(MAKE)
    (root / "params.yaml").write_text("rows: {train: 1}\n")
    (root / ".gitignore").write_text("/remote\n")
    command(root, "git", "init", "--quiet")
    command(root, "git", "config", "user.email", "someone@example.org")
    command(root, "git", "config", "user.name", "Someone")
    command(root, *DVC, "init", "--quiet")
    command(root, *DVC, "config", "core.analytics", "false")
    command(root, *DVC, "remote", "add", "--default", "local", "remote")
    command(root, *DVC, "repro", "--quiet")
    command(root, *DVC, "push", "--quiet")
    command(root, "git", "add", "--all")
    command(root, "git", "commit", "--quiet", "--message", "start")
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "project", symlinks=True))


def test_working_hash_is_the_hash_that_dvc_records(project: Path) -> None:
    made = project / "data" / "made"
    assert data_versions.tracked_hash(made).endswith(".dir")
    assert data_versions.working_hash(made) == data_versions.tracked_hash(made)
    assert data_versions.check_clean(made) == data_versions.tracked_hash(made)


def test_changed_files_are_named_and_refused(project: Path) -> None:
    made = project / "data" / "made"
    (made / "train.jsonl").write_text("other\n")
    (made / "été" / "test.jsonl").unlink()
    (made / "extra.jsonl").write_text("3\n")
    with pytest.raises(BadInput) as error:
        data_versions.check_clean(made)
    for part in (
        "extra.jsonl (new)",
        "été/test.jsonl (gone)",
        "train.jsonl (changed)",
        "--take-in made",
        "dvc checkout",
    ):
        assert part in str(error.value)


def test_changed_files_are_named_where_the_cache_lies_elsewhere(project: Path) -> None:
    (project / ".dvc" / "cache").rename(project.parent / "cache")
    (project / ".dvc" / "config.local").write_text("[cache]\n    dir = ../../cache\n")
    made = project / "data" / "made"
    (made / "train.jsonl").write_text("other\n")
    with pytest.raises(BadInput, match=r"train\.jsonl \(changed\)"):
        data_versions.check_clean(made)


def test_stage_output_taken_in_is_clean_tracked_and_pushed(project: Path) -> None:
    made = project / "data" / "made"
    before = data_versions.tracked_hash(made)
    (made / "train.jsonl").write_text("other\n")
    (project / "data" / "sources").unlink()  # as in a fresh clone, where the run pulled the data alone
    taken = data_versions.take_in(made)
    assert taken != before
    assert data_versions.check_clean(made) == taken
    assert data_versions.unpushed([made]) == []
    assert data_versions.git_commit(project)[1] is False
    assert command(project, *DVC, "status").strip() == "Data and pipelines are up to date."


def test_untracked_file_and_folder_can_be_taken_in_and_again(project: Path) -> None:
    file, folder = project / "data" / "mine.csv", project / "data" / "own"
    file.write_text("a,b\n")
    folder.mkdir()
    (folder / "train.jsonl").write_text("{}\n")
    for path in (file, folder):
        with pytest.raises(BadInput, match=f"not tracked by DVC.*--take-in {path.name}"):
            data_versions.tracked_hash(path)
        data_versions.take_in(path)
        assert data_versions.check_clean(path) == data_versions.working_hash(path)
    file.write_text("a,c\n")
    with pytest.raises(BadInput, match="differs"):
        data_versions.check_clean(file)
    data_versions.take_in(file)
    assert data_versions.unpushed([file]) == []


def test_missing_data_is_pulled_from_the_remote(project: Path) -> None:
    made = project / "data" / "made"
    shutil.rmtree(made)
    shutil.rmtree(project / ".dvc" / "cache")
    with pytest.raises(BadInput, match="does not exist"):
        data_versions.check_clean(made)
    data_versions.ensure_present(made)
    assert data_versions.check_clean(made)


def test_missing_data_that_no_remote_has_fails_with_dvcs_reason(project: Path) -> None:
    for folder in ("data/made", ".dvc/cache", "remote"):
        shutil.rmtree(project / folder)
    with pytest.raises(Failed, match="dvc pull data/made"):
        data_versions.ensure_present(project / "data" / "made")


def test_pushed_means_every_file_in_the_default_remote(project: Path) -> None:
    made = project / "data" / "made"
    assert data_versions.remote_url(project) == str(project / "remote")
    assert data_versions.unpushed([made]) == []
    next(file for file in (project / "remote").rglob("*") if file.is_file() and file.suffix != ".dir").unlink()
    assert data_versions.unpushed([made]) == [made]


def test_without_a_default_remote_nothing_is_pushed(project: Path) -> None:
    command(project, *DVC, "remote", "default", "--unset")
    assert data_versions.remote_url(project) is None
    assert data_versions.unpushed([project / "data" / "made"]) == [project / "data" / "made"]


def test_a_remotes_address_may_have_a_percent_sign(project: Path) -> None:
    command(project, *DVC, "remote", "modify", "local", "url", "s3://bucket/my%20data")
    assert data_versions.remote_url(project) == "s3://bucket/my%20data"


def test_a_dvc_file_tracks_what_a_stage_made_that_is_no_more(project: Path) -> None:
    """DVC keeps the stage's entry in `dvc.lock`; an audit of the commit reads both files alike."""
    made = project / "data" / "made"
    before = data_versions.tracked_hash(made)
    (project / "dvc.yaml").write_text(STAGE.partition("  prepare:")[0])
    (made / "train.jsonl").write_text("by hand\n")
    command(project, *DVC, "add", "--quiet", "data/made")
    assert before in (project / "dvc.lock").read_text()
    assert data_versions.check_clean(made) == data_versions.working_hash(made) != before
    assert data_versions.recorded_params(made) == {}
    (made / "train.jsonl").write_text("and again\n")
    with pytest.raises(BadInput, match=r"train\.jsonl \(changed\)"):
        data_versions.check_clean(made)
    data_versions.check_stages(project)
    taken = data_versions.take_in(made)
    assert data_versions.check_clean(made) == taken
    assert not (project / "data" / "taken_in.txt").exists(), "no stage would make it again"
    command(project, "git", "add", "--all")
    command(project, "git", "commit", "--quiet", "--message", "a data set of its own")
    commit, _ = data_versions.git_commit(project)
    assert commit is not None
    assert _tracked_at(commit, made) == taken


def test_parameters_of_the_stage_are_those_it_ran_with(project: Path) -> None:
    (project / "params.yaml").write_text("rows: {train: 2}\n")
    assert data_versions.recorded_params(project / "data" / "made") == {"rows": {"train": 1}}


def test_git_commit_and_cleanliness(project: Path, tmp_path: Path) -> None:
    head = command(project, "git", "rev-parse", "HEAD").strip()
    assert data_versions.git_commit(project / "data" / "made") == (head, True)
    (project / "new.txt").write_text("x")
    assert data_versions.git_commit(project) == (head, False)
    assert data_versions.git_commit(tmp_path) == (None, False)


def test_only_what_changed_in_the_code_makes_the_code_unclean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that a comparison writes beside it do not."""
    (tmp_path / "tasks").mkdir()
    code = tmp_path / "tasks" / "data_versions.py"
    code.write_text("")
    git = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.org")
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "-m", "the code")):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(data_versions, "__file__", str(code))
    (tmp_path / "results.jsonl").write_text("{}")
    commit, clean = data_versions.code_commit()
    assert (len(commit or ""), clean) == (40, True)
    (tmp_path / "tasks" / "new.py").write_text("")
    assert data_versions.code_commit() == (commit, False)


def test_outside_a_dvc_repository_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="in no DVC repository; run `git init && dvc init`"):
        data_versions.tracked_hash(tmp_path / "data")


def test_a_stage_output_edited_by_hand_is_refused_before_dvc_repro(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert data_versions.main() == 0
    (project / "data" / "made" / "train.jsonl").write_text("by hand\n")
    assert data_versions.main() == 2
    assert "train.jsonl (changed); run again with --take-in made" in capsys.readouterr().err
    shutil.rmtree(project / "data" / "made")
    assert data_versions.main() == 0
    (project / "dvc.lock").unlink()
    assert data_versions.main() == 0


def test_the_check_before_dvc_repro_imports_nothing_slow(project: Path) -> None:
    code = (
        "import sys; from tasks.data_versions import main; main(); print({'torch', 'dvc', 'mlflow'} & {*sys.modules})"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_what_was_taken_in_survives_dvc_repro_with_changed_dependencies_and_params(project: Path) -> None:
    made = project / "data" / "made"
    (made / "train.jsonl").write_text("by hand\n")
    taken = data_versions.take_in(made)
    assert (project / "data" / "taken_in.txt").read_text() == "made\n"
    for change in ("rows: {train: 2}\n", "rows: {train: 1}\n"):
        (project / "params.yaml").write_text(change)
        (project / "make.py").write_text(MAKE + f"# {change}")
        data_versions.check_stages(project)
        command(project, *DVC, "repro", "--quiet")
        assert data_versions.check_clean(made) == taken
        assert data_versions.recorded_params(made) == {"rows": {"train": int(change[-3])}}
    shutil.rmtree(made)
    data_versions.check_stages(project)
    assert data_versions.check_clean(made) == taken


def test_a_remote_that_is_no_folder_is_asked_once_for_all(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "data" / "mine.csv").write_text("a,b\n")
    paths = [project / "data" / "made", project / "data" / "mine.csv"]
    data_versions.take_in(paths[1])
    handler = partial(SimpleHTTPRequestHandler, directory=str(project / "remote"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    try:
        command(project, *DVC, "remote", "modify", "local", "url", f"http://127.0.0.1:{server.server_port}")
        calls: list[tuple[str, ...]] = []
        dvc = data_versions.dvc
        monkeypatch.setattr(data_versions, "dvc", lambda root, *more: (calls.append(more), dvc(root, *more))[1])
        assert data_versions.unpushed(paths) == []
        assert calls == [("status", "--cloud", "--json", "data/made", "data/mine.csv")]
        shutil.rmtree(project / "remote" / "files" / "md5" / data_versions.tracked_hash(paths[1])[:2])
        assert data_versions.unpushed(paths) == paths[1:]
    finally:
        server.shutdown()
        server.server_close()
