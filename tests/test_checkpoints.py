"""What a checkpoint must be before anything is loaded, and what loading gives."""

import json
import shutil

import pytest
import torch
from tiny import adapter

from recall.checkpoints import Checkpoint, check_architecture, check_checkpoint
from recall.errors import BadInput
from recall.loading import lay_over, load_model, load_tokenizer, training_dtype


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_checkpoint_and_an_adapter_pass(tiny_model_folder, tiny_gpt2_folder, tmp_path):
    for checkpoint in (tiny_model_folder, tiny_gpt2_folder, adapter(tmp_path, Checkpoint(tiny_model_folder)).folder):
        check_checkpoint(checkpoint)


def no_folder(folder):
    shutil.rmtree(folder)


def no_config(folder):
    (folder / "config.json").unlink()


def mangled_config(folder):
    (folder / "config.json").write_text("{")


def unknown_architecture(folder):
    change_config(folder, model_type="perceptron9000")


def no_language_model(folder):
    change_config(folder, model_type="vit")


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def cut_short(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def cut_in_header(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])


def shard_missing(folder):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_folder, "not a folder"),
        (no_config, "config.json"),
        (mangled_config, "not JSON"),
        (unknown_architecture, "perceptron9000"),
        (no_language_model, "vit"),
        (pickle_only, "convert it to safetensors"),
        (no_weights, "no model.safetensors"),
        (cut_short, "cut short"),
        (cut_in_header, "cut short"),
        (shard_missing, "model-00001-of-00002.safetensors"),
        (no_tokenizer, "tokenizer"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(folder, damage, says):
    damage(folder)
    with pytest.raises(BadInput, match=says) as refusal:
        check_checkpoint(folder)
        check_architecture(folder)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_weights_that_the_config_does_not_describe_are_refused_not_filled_at_random(folder):
    change_config(folder, num_hidden_layers=4)
    check_checkpoint(folder)
    with pytest.raises(BadInput, match=r"layers\.3"):
        load_model(folder, torch.float32)


def test_weights_of_another_shape_are_refused(folder):
    change_config(folder, intermediate_size=40)
    with pytest.raises(BadInput, match=r"cannot be loaded|lacks"):
        load_model(folder, torch.float32)


def test_an_adapter_of_another_kind_is_refused(tiny_model_folder, tmp_path):
    path = adapter(tmp_path, Checkpoint(tiny_model_folder)).folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(BadInput, match="IA3"):
        check_checkpoint(tmp_path)


def test_the_tokenizer_pads_on_the_left_and_with_the_end_where_it_has_no_padding_token(folder):
    assert load_tokenizer(folder)(["aa", "a"], padding=True)["attention_mask"] == [[1, 1], [0, 1]]
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "pad_token"})
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token == tokenizer.eos_token


def test_a_model_loads_in_the_type_asked_for_and_an_adapter_in_float32(tiny_model_folder, tmp_path):
    model = load_model(tiny_model_folder, torch.bfloat16)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    adapted = lay_over(model, adapter(tmp_path, Checkpoint(tiny_model_folder)).folder)
    types = {"lora_" in name: parameter.dtype for name, parameter in adapted.named_parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    assert not adapted.training


def test_an_adapter_that_does_not_fit_its_base_is_refused(tiny_model_folder, tiny_gpt2_folder, tmp_path):
    narrow = adapter(tmp_path, Checkpoint(tiny_gpt2_folder)).folder
    with pytest.raises(BadInput, match=r"adapter .* cannot be laid over its base") as refusal:
        lay_over(load_model(tiny_model_folder, torch.float32), narrow)
    assert "\n" not in str(refusal.value)


def test_the_training_type_is_what_the_setting_says_or_what_the_hardware_is_fast_at():
    assert training_dtype("float32") == torch.float32
    assert training_dtype("bfloat16") == torch.bfloat16
    assert training_dtype("auto") in {torch.float32, torch.bfloat16}
