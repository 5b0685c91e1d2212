"""No path in a config, manifest, record, checkpoint or data set leads out of where it belongs."""

import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from recall.checkpoints import check_checkpoint
from recall.errors import BadInput
from recall.load_settings import load_settings
from recall.settings import Settings
from recall.tensor_files import weight_files
from tasks import data_versions
from tasks.refs import ArtifactRef, CheckpointRef

OUTSIDE = ["../secret", "/etc/passwd", "a/../../secret", "..", ".", ""]
SETTINGS = {
    "stream": {"name": "s", "learning_tasks": ["a"]},
    "base_model": {"folder": "base"},
    "learning_tasks": {"a": {"kind": "generation", "metric": "chrf", "source": {"path": "a"}}},
}


@pytest.mark.parametrize("name", [*OUTSIDE, "a\n", "a\0"])
def test_a_learning_task_names_a_folder_and_nothing_above_it(name):
    values = SETTINGS | {"learning_tasks": {name: SETTINGS["learning_tasks"]["a"]}}
    values["stream"] = {"name": "s", "learning_tasks": [name]}
    with pytest.raises(ValidationError, match="a name is made of"):
        Settings.model_validate(values)


@pytest.mark.parametrize("name", [*OUTSIDE, "s' OR '1'='1", "s\n"])
def test_a_stream_is_a_plain_name(name):
    with pytest.raises(ValidationError, match=r"stream\.name"):
        Settings.model_validate(SETTINGS | {"stream": {"name": name, "learning_tasks": ["a"]}})


@pytest.mark.parametrize("name", ["../params", "/etc/hosts", "sub/x"])
def test_a_profile_is_a_file_of_its_folder(name, tmp_path):
    (tmp_path / "params.yaml").write_text(json.dumps(SETTINGS))
    with pytest.raises(BadInput, match="is no name of a file in"):
        load_settings(tmp_path / "params.yaml", name)


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("field", ["kind", "fingerprint"])
def test_a_reference_out_of_the_registry_cannot_name_a_folder_outside_the_store(field, name):
    """`update.json` comes from a server; the folder that it names is written to, and cleared before."""
    record = {"kind": "experts", "fingerprint": "abc", "path": "/anywhere", "sha256": "0"}
    with pytest.raises(ValidationError, match=field):
        CheckpointRef.model_validate(record | {field: name})


def test_where_an_artifact_lay_when_it_was_recorded_is_of_no_matter(tmp_path):
    ref = ArtifactRef(kind="experts", fingerprint="abc", path=Path("/etc"), sha256="0")
    assert ref.at(tmp_path).path == tmp_path / "experts" / "abc"


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "sub/../../model.safetensors", 3])
def test_an_index_cannot_name_weights_outside_its_folder(tiny_model_folder, tmp_path, name):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for reads in (check_checkpoint, weight_files):
        with pytest.raises(BadInput, match="no file of its folder"):
            reads(folder)


@pytest.fixture
def data_set(tmp_path):
    folder = tmp_path / "data" / "reviews"
    folder.mkdir(parents=True)
    (tmp_path / ".dvc" / "cache" / "files").mkdir(parents=True)
    (folder / "test.jsonl").write_text("{}\n")
    return folder


def test_a_link_in_a_data_set_cannot_lead_out_of_it(data_set, tmp_path):
    (tmp_path / "secret").write_text("secret")
    data_versions.check_links(data_set)
    (data_set / "train.jsonl").symlink_to("../../secret")
    with pytest.raises(BadInput, match=r"train\.jsonl is a link that leads out"):
        data_versions.check_links(data_set)


def test_a_linked_folder_in_a_data_set_cannot_lead_out_of_it(data_set, tmp_path):
    (tmp_path / "private").mkdir()
    (data_set / "more").symlink_to(tmp_path / "private")
    with pytest.raises(BadInput, match="more is a link that leads out"):
        data_versions.check_links(data_set)


def test_links_into_the_cache_of_dvc_may_stand(data_set, tmp_path):
    """So DVC itself lays out a data set with `cache.type symlink`."""
    cached = tmp_path / ".dvc" / "cache" / "files" / "object"
    cached.write_text("{}\n")
    (data_set / "train.jsonl").symlink_to(cached)
    data_versions.check_links(data_set)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[cache]\n    dir = ../elsewhere\n")
    with pytest.raises(BadInput, match="leads out"):
        data_versions.check_links(data_set)
