"""Stage 4, representation extraction: one model's mean hidden states on the typical samples, layer by layer."""

from __future__ import annotations

from typing import Any

from recall.settings import RepresentationSettings
from tasks.refs import CheckpointRef, RepresentationsRef, SamplesRef
from tasks.stage import Job, stage


@stage(kind="representations", ref=RepresentationsRef)
def represent(
    job: Job, model: CheckpointRef, samples: SamplesRef, settings: RepresentationSettings, modules: bool
) -> dict[str, Any]:
    """Write `representations.npy`, `(L, P, E)`; the forward pass runs in float32 whatever the weights' type.

    With `modules` a block gives two rows, its attention's and its own.
    """
    import numpy as np
    import torch

    from recall import representations
    from recall.loaded_models import loaded

    prompts = samples.read()
    with loaded(model.checkpoint(), torch.float32) as (network, tokenizer):
        hidden_LPE = representations.represent(
            network,
            tokenizer,
            prompts,
            batch_size=settings.batch_size,
            max_tokens=settings.max_tokens,
            pooling=settings.pooling,
            modules=modules,
            what=f"represent {job.label}",
        )
    np.save(job.out / "representations.npy", hidden_LPE, allow_pickle=False)
    return {"layers": len(hidden_LPE)}
