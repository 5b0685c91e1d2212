"""Stage 3, sample clustering: the prompts that stand for the newest learning task."""

from __future__ import annotations

import json
from typing import Any

from recall.settings import SamplingSettings
from tasks.refs import CheckpointRef, SamplesRef, SplitRef
from tasks.stage import Job, stage


@stage(kind="samples", ref=SamplesRef)
def cluster(job: Job, expert: CheckpointRef, train: SplitRef, settings: SamplingSettings) -> dict[str, Any]:
    """Choose the typical samples P by the expert's last-layer representations; targets are never used.

    The forward pass runs in the type that is fast here: it only has to tell near prompts from far ones.
    """
    from recall.loaded_models import loaded
    from recall.loading import training_dtype
    from recall.representations import represent
    from recall.sampling import typical_samples

    prompts = list(dict.fromkeys(row.prompt for row in train.read()))[: settings.candidates]
    with loaded(expert.checkpoint(), training_dtype("auto")) as (model, tokenizer):
        last_layer_PE = represent(
            model,
            tokenizer,
            prompts,
            batch_size=settings.batch_size,
            max_tokens=settings.max_tokens,
            last_layer_only=True,
            what=f"cluster {job.label}",
        )[0]
    chosen = typical_samples(last_layer_PE, settings.clusters, settings.seed)
    lines = [json.dumps({"prompt": prompts[index]}, ensure_ascii=False) for index in chosen]
    (job.out / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"count": len(chosen)}
