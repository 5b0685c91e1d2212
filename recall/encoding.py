"""Prompt and answer as token ids: the same split for training and for scoring."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt, and of each of its answers as they continue it."""

    prompt: list[int]
    answers: list[list[int]]


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], answers: list[list[str]], max_tokens: int, end: bool = False
) -> list[Encoded]:
    """Tokenise every prompt and its answers, an answer continuing the prompt after one space.

    An answer's ids are what the joint text has beyond the prompt's own ids, as lm-evaluation-harness splits them
    (`_encode_pair`), so that tokenizers which treat a leading space specially agree with running text: white space at a
    prompt's end belongs to its answers. With `end` the end-of-text token follows each answer. A prompt that leaves no
    room in `max_tokens` is cut on the left (see `shortened`); an answer that alone is too long is cut on the right.
    """
    heads = [(prompt.rstrip() or prompt) if row else prompt for prompt, row in zip(prompts, answers, strict=True)]
    prompt_ids: list[list[int]] = tokenizer(heads)["input_ids"]
    texts = [f"{prompt} {answer}" for prompt, row in zip(prompts, answers, strict=True) for answer in row]
    text_ids = iter(tokenizer(texts)["input_ids"] if texts else [])
    encoded = []
    for ids, row in zip(prompt_ids, answers, strict=True):
        tails = [next(text_ids)[len(ids) :] + [tokenizer.eos_token_id] * end for _ in row]
        tails = [tail[: max_tokens - 1] for tail in tails]
        room = max_tokens - max(map(len, tails), default=0)
        encoded.append(Encoded(shortened(ids, room, tokenizer), tails))
    return encoded


def shortened(ids: list[int], room: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The last `room` tokens; a first one that says that a text begins stays, as some models are lost without it."""
    begins = room > 1 and len(ids) > room and ids[0] == tokenizer.bos_token_id
    return [ids[0], *ids[len(ids) - room + 1 :]] if begins else ids[-room:]
