"""How long a text a model reads: what its config states, and where more is an index error."""

from __future__ import annotations

import re
from contextlib import closing

from recall.checkpoints import Checkpoint, read_json
from recall.tensor_files import TensorFolder

STATED = ("max_position_embeddings", "n_positions", "max_target_positions")
# One row a position, as GPT-2, OPT, BERT, BART and their kin have; the others compute theirs.
LEARNED = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?)\.weight$")


def context_length(checkpoint: Checkpoint) -> int | None:
    """How many tokens a model is made for, as its config says; None where it states no limit."""
    config = read_json((checkpoint.base or checkpoint).folder / "config.json")
    found = [config[key] for key in STATED if isinstance(config.get(key), int) and config[key] > 0]
    if not found:
        return None
    # RoBERTa and its kin count positions from behind the padding token's number.
    offset = (config.get("pad_token_id") or 0) + 1 if "roberta" in str(config.get("model_type")) else 0
    return int(found[0]) - offset


def positions(checkpoint: Checkpoint) -> int | None:
    """How many tokens a model with learned positions can read at all; None where it computes them, however many."""
    with closing(TensorFolder((checkpoint.base or checkpoint).folder)) as tensors:
        learned = any(LEARNED.search(name) for name in tensors.specs)
    return context_length(checkpoint) if learned else None
