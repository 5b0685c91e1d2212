"""Tiny random models and a tokenizer, made on the spot."""

import string
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from recall.checkpoints import Checkpoint

END, PAD = "<|end|>", "<|pad|>"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, but one for a space with a small letter; text in small letters has ids below 96."""
    space, newline = "Ġ", "Ċ"
    pairs = [space + letter for letter in string.ascii_lowercase]
    first = [END, PAD, *string.ascii_lowercase, *pairs, space, newline, *string.digits, *string.ascii_uppercase]
    rest = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(first))
    vocabulary = {token: i for i, token in enumerate([*first, *rest])}
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=[(space, letter) for letter in string.ascii_lowercase]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token=END, pad_token=PAD)


def llama(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Checkpoint:
    """A Llama of 3 blocks with random weights, saved to `folder`."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**(shape | heads | changes)))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    model.to(dtype).save_pretrained(folder)
    return Checkpoint(folder)


def adapter(folder: Path, base: Checkpoint, seed: int = 1, rank: int = 4) -> Checkpoint:
    """A LoRA adapter over `base` with random, non-zero factors."""
    torch.manual_seed(seed)
    model = get_peft_model(load(base), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return Checkpoint(folder, base)


def load(checkpoint: Checkpoint) -> PreTrainedModel:
    """The full model of a full checkpoint, in its stored type."""
    return AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype="auto")


def apart_from_each_other(factory, folder: Path, count: int, **changes) -> list[Checkpoint]:
    """`count` models with different weights."""
    return [factory(folder / str(seed), seed=seed, **changes) for seed in range(count)]
