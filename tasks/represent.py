"""Stage 4, representation extraction: one model's mean hidden states on the typical samples, layer by layer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from recall import representations
from recall.settings import RepresentationSettings
from tasks.loaded import loaded
from tasks.refs import CheckpointRef, RepresentationsRef, SamplesRef
from tasks.stage import Job, stage


@stage(kind="representations", ref=RepresentationsRef)
def represent(job: Job, model: CheckpointRef, samples: SamplesRef, settings: RepresentationSettings) -> dict[str, Any]:
    """Write `representations.npy`, `(L, P, E)`; the forward pass runs in float32 whatever the weights' type."""
    lines = (samples.path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    with loaded(model, torch.float32) as (network, tokenizer):
        hidden_LPE = representations.represent(
            network, tokenizer, prompts, settings, what=f"representations {job.label}"
        )
    np.save(job.out / "representations.npy", hidden_LPE, allow_pickle=False)
    return {"layers": len(hidden_LPE)}
