"""A small language model takes in structured output: dates in French, German and Spanish as JSON objects.

    python examples/json_extraction.py [--quick] [--json] [--seed N]

    Date: dimanche 3 mars 2024
    JSON: {"day": 3, "month": 3, "year": 2024}

The dates are written by Babel from Unicode's CLDR. Fine-tuning (LoRA), decoding and scoring are the pipeline's
own, so that with `kind: generation` and `metric: json_f1` in params.yaml the same learning tasks run on a real
model. The model here is a tiny Llama made on the spot: random weights, then a training on English dates, so
that there is a common start to merge from. Its tokenizer is learned from the English rows too; no date is in
training and in test.
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from babel.dates import format_date
from plain_stream import main, take_in
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

from recall.checkpoints import Checkpoint, copy_side_files
from recall.encoding import encode
from recall.evaluation import evaluate
from recall.finetuning import finetune
from recall.learning_tasks import Row, TaskSpec
from recall.loaded_models import loaded
from recall.loading import lay_over, load_model, load_tokenizer
from recall.results import StreamResult
from recall.settings import EvaluationSettings, FinetuningSettings

SPEC = TaskSpec(kind="generation", metric="json_f1", source={})
LANGUAGES = {"french": "fr", "german": "de", "spanish": "es"}
END, PAD = "<|end|>", "<|pad|>"
FIRST_DAY, DAYS = datetime.date(1990, 1, 1), 40 * 365
TEST_ROWS = 100
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
}


def run(work: Path, quick: bool, seed: int) -> tuple[StreamResult, dict[str, int]]:
    """The base model, then the stream."""
    base_rows = dates("en", 1000 if quick else 2000, seed)
    base = work / "base"
    tokenizer = learned_tokenizer(base_rows)
    tokenizer.save_pretrained(base)
    pretrain(
        new_model(tokenizer, seed), load_tokenizer(base), base_rows, epochs=6 if quick else 8, seed=seed
    ).save_pretrained(base)
    train_rows = 200 if quick else 600
    rows = {name: dates(locale, train_rows + TEST_ROWS, seed) for name, locale in LANGUAGES.items()}
    samples = {name: work / f"{name}.jsonl" for name in rows}
    for name, file in samples.items():
        file.write_text("".join(row.model_dump_json() + "\n" for row in rows[name][:train_rows]), encoding="utf-8")
    settings = FinetuningSettings(
        epochs=3, learning_rate=3e-3, batch_size=32, checkpoint_steps=10**6, dtype="float32", seed=seed
    )

    def train(name: str, start: Path, out: Path) -> None:
        adapter = out.with_name(f"{out.name}-adapter")
        finetune(Checkpoint(start), rows[name][:train_rows], settings, adapter, out.with_name(f"{out.name}-work"))
        model = lay_over(load_model(start, torch.float32), adapter)
        model.merge_and_unload().save_pretrained(out)
        copy_side_files(start, out)

    def score(name: str, folder: Path) -> float:
        with loaded(Checkpoint(folder), torch.float32) as (model, tokenizer):
            limits = EvaluationSettings(max_new_tokens=24)
            return evaluate(model, tokenizer, rows[name][train_rows:], SPEC, limits).score

    return take_in("dates as JSON", base, samples, "json_f1", train, score), dict.fromkeys(rows, TEST_ROWS)


def dates(locale: str, count: int, seed: int) -> list[Row]:
    """Different days of forty years, with the weekday or without it."""
    draw = random.Random(f"{seed} {locale}")
    rows = []
    for number in draw.sample(range(DAYS), count):
        day = FIRST_DAY + datetime.timedelta(days=number)
        text = format_date(day, draw.choice(["long", "full"]), locale=locale)
        answer = json.dumps({"day": day.day, "month": day.month, "year": day.year})
        rows.append(Row(id=str(number), prompt=f"Date: {text}\nJSON:", target=answer))
    return rows


def learned_tokenizer(rows: list[Row]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, in which a day and a year are a token each."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator([f"{row.prompt} {row.target}" for row in rows], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token=END, pad_token=PAD)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """3 blocks of width 64 with random weights."""
    torch.manual_seed(seed)
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=512, **SHAPE, **ends)
    )


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], epochs: int, seed: int
) -> LlamaForCausalLM:
    """Every weight, on prompt and answer; a plain loop."""
    encoded = encode(tokenizer, [row.prompt for row in rows], [[row.target] for row in rows], max_tokens=128, end=True)
    texts = [row.prompt + row.answers[0] for row in encoded]
    steps = epochs * -(-len(texts) // 32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = get_linear_schedule_with_warmup(optimiser, steps // 10, steps)
    model.train()
    for batch in _batches(texts, epochs, tokenizer.pad_token_id, seed):
        model(input_ids=batch, labels=batch.masked_fill(batch == tokenizer.pad_token_id, -100)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return model


def _batches(texts: list[list[int]], epochs: int, pad: int, seed: int) -> Iterator[torch.Tensor]:
    order = random.Random(seed)
    for _ in range(epochs):
        order.shuffle(texts)
        for start in range(0, len(texts), 32):
            chosen = texts[start : start + 32]
            longest = max(map(len, chosen))
            yield torch.tensor([ids + [pad] * (longest - len(ids)) for ids in chosen])


if __name__ == "__main__":
    main(__doc__, run)
