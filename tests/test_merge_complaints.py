"""What users of other merge tools complain about does not happen here."""

import json
import shutil

import torch
from merge_fixture import merged, tensors, write_weights
from tiny import llama, load

from recall.checkpoints import Checkpoint


def test_config_and_tokenizer_come_from_the_first_model_every_time(pool, weights, tmp_path):
    newest = shutil.copytree(pool / "expert1", tmp_path / "newest")
    config = json.loads((newest / "config.json").read_text())
    (newest / "config.json").write_text(json.dumps(config | {"name_of_the_donor": "newest"}))
    for attempt in range(3):
        merged([pool / "base", newest], tmp_path / f"out{attempt}", "--weights", weights)
        out = tmp_path / f"out{attempt}"
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            assert (out / name).read_bytes() == (pool / "base" / name).read_bytes()


def test_a_tied_head_stays_tied_and_a_free_one_stays_free(pool, weights, tmp_path, tiny_tokenizer):
    merged([pool / "base", pool / "expert1"], tmp_path / "tied", "--weights", weights)
    model = load(Checkpoint(tmp_path / "tied"))
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    shape = {"vocab_size": len(tiny_tokenizer), "tie_word_embeddings": False}
    free = [llama(tmp_path / f"free{seed}", seed=seed, **shape).folder for seed in (0, 1)]
    merged(free, tmp_path / "out", "--weights", weights)
    model = load(Checkpoint(tmp_path / "out"))
    assert not model.config.tie_word_embeddings
    head = 0.2 * tensors(free[0])["lm_head.weight"] + 0.8 * tensors(free[1])["lm_head.weight"]
    torch.testing.assert_close(model.lm_head.weight.data, head)


def test_sixteen_bit_models_are_summed_in_float32_and_rounded_once(tmp_path):
    models = [llama(tmp_path / str(seed), seed=seed, dtype=torch.bfloat16).folder for seed in range(4)]
    shares = [0.1, 0.2, 0.3, 0.4]
    rows = write_weights(tmp_path / "w.json", [shares] * 4)
    merged(models, tmp_path / "out", "--weights", rows)
    inputs = [tensors(model) for model in models]
    for name, found in tensors(tmp_path / "out").items():
        total = inputs[0][name].float() * shares[0]
        for share, model in zip(shares[1:], inputs[1:], strict=True):
            total.addcmul_(model[name].float(), torch.tensor(share))
        assert torch.equal(found, total.to(torch.bfloat16))


def test_a_padded_vocabulary_is_kept_whole(weights, tmp_path, tiny_tokenizer):
    padded = len(tiny_tokenizer) + 37
    models = [llama(tmp_path / str(seed), seed=seed, vocab_size=padded).folder for seed in (0, 1)]
    for model in models:
        tiny_tokenizer.save_pretrained(model)
    merged(models, tmp_path / "out", "--weights", weights)
    assert tensors(tmp_path / "out")["model.embed_tokens.weight"].shape[0] == padded
