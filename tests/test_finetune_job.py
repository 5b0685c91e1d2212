"""`recall.finetune_job` in one process: what it refuses, what it leaves, and that it goes on after a kill."""

import json

import pytest
import yaml
from safetensors.torch import load_file

from recall.finetune_job import main

ROWS = [{"id": str(i), "prompt": f"name {i}:", "target": f"a{i} b"} for i in range(8)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Rows and settings: 4 steps, a checkpoint after the second and the fourth."""
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {"kind": "translation", "metric": "chrf", "source": {"path": "none"}}
    finetuning = {"batch_size": 2, "epochs": 1, "learning_rate": 0.01, "checkpoint_steps": 2, "dtype": "float32"}
    settings = {
        "stream": {"name": "s", "learning_tasks": ["one"]},
        "base_model": {"folder": "base"},
        "learning_tasks": {"one": task},
        "finetuning": finetuning | {"lora": {"r": 4, "alpha": 8}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(start, *options):
    main(["--start", str(start), "--rows", "train.jsonl", "--out", "expert", *options])


def refused(capsys, start, code=2):
    with pytest.raises(SystemExit) as ended:
        job(start)
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (sentence,) = [line for line in said.splitlines() if line.startswith("recall.finetune_job: ")]
    return sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"id": "1", "prompt": "a", "target": "b"}\n{"id": "2", "prompt": "a"}\n', "row 2: target: Field required"),
        (b'{"id": "1", "prompt": "a", "target": "b"}\n{half\n', "row 2: not JSON"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "is empty"),
    ],
)
def test_rows_that_cannot_be_used_are_one_sentence(folder, tiny_model_folder, capsys, content, words):
    (folder / "train.jsonl").write_bytes(content)
    assert words in refused(capsys, tiny_model_folder)
    assert not (folder / "expert.work").exists()


def test_a_start_that_is_no_checkpoint_is_one_sentence(folder, capsys):
    assert "is not a folder" in refused(capsys, folder / "nowhere")


def test_nothing_but_the_adapter_is_left(folder, tiny_model_folder):
    before = set(folder.iterdir())
    job(tiny_model_folder)
    assert set(folder.iterdir()) - before == {folder / "expert"}
    assert sorted(path.name for path in (folder / "expert").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_work_folder_of_ones_own_stays(folder, tiny_model_folder):
    job(tiny_model_folder, "--work", "kept")
    assert (folder / "kept" / "checkpoint-4" / "complete.json").is_file()


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    folder, tiny_model_folder, tmp_path_factory, capsys, files_of_at_most
):
    job(tiny_model_folder)
    whole = load_file(
        (folder / "expert").rename(tmp_path_factory.mktemp("whole") / "expert") / "adapter_model.safetensors"
    )
    with files_of_at_most(1000):
        assert "expert was not made" in refused(capsys, tiny_model_folder, code=1)
    assert not (folder / "expert").exists()
    # As a kill between the adapter's two files leaves it.
    (folder / ".expert.partial").mkdir()
    (folder / ".expert.partial" / "adapter_model.safetensors").write_bytes(b"half")
    job(tiny_model_folder)
    again = load_file(folder / "expert" / "adapter_model.safetensors")
    assert all(again[name].equal(tensor) for name, tensor in whole.items())
    assert not (folder / ".expert.partial").exists()
