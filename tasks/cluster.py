"""Stage 3, sample clustering: the prompts that stand for the newest learning task."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from recall.settings import SamplingSettings
from tasks.refs import CheckpointRef, SamplesRef, SplitRef, TextFileRef
from tasks.stage import Job, stage

if TYPE_CHECKING:
    import numpy as np
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recall.sampling import Typical


@stage(kind="samples", ref=SamplesRef)
def cluster(
    job: Job, expert: CheckpointRef, train: SplitRef, settings: SamplingSettings, heldout: TextFileRef | None = None
) -> dict[str, Any]:
    """Choose the typical samples P by the expert's last-layer representations, or at random; targets are never used.

    The forward pass runs in the type that is fast here: it only has to tell near prompts from far ones.
    """
    from recall.sampling import random_samples

    if settings.source != "generated" and settings.choice == "random":
        prompts = _written(train, heldout, settings)
        chosen = random_samples(len(prompts), settings.clusters, settings.seed)
    else:
        prompts, chosen = _read_by_the_expert(job, expert, train, settings, heldout)
    lines = [json.dumps({"prompt": prompts[index]}, ensure_ascii=False) for index in chosen.indices]
    (job.out / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"count": len(chosen.indices), "cluster_sizes": chosen.cluster_sizes}


def _read_by_the_expert(
    job: Job, expert: CheckpointRef, train: SplitRef, settings: SamplingSettings, heldout: TextFileRef | None
) -> tuple[list[str], Typical]:
    from recall.generated import GENERATED_TOKENS, generate_prompts
    from recall.loaded_models import loaded
    from recall.loading import training_dtype
    from recall.sampling import farthest_samples, random_samples, typical_samples

    with loaded(expert.checkpoint(), training_dtype("auto")) as (model, tokenizer):
        if settings.source == "generated":
            prompts = generate_prompts(
                model,
                tokenizer,
                settings.generated,
                max_new_tokens=max(min(settings.max_tokens, GENERATED_TOKENS) - 1, 1),
                batch_size=settings.batch_size,
                seed=settings.seed,
            )
        else:
            prompts = _written(train, heldout, settings)
        if settings.choice == "random":
            return prompts, random_samples(len(prompts), settings.clusters, settings.seed)
        last_layer_PE = _last_layer(job, model, tokenizer, prompts, settings)
    if settings.choice == "farthest":
        return prompts, farthest_samples(last_layer_PE, settings.clusters)
    return prompts, typical_samples(last_layer_PE, settings.clusters, settings.seed)


def _written(train: SplitRef, heldout: TextFileRef | None, settings: SamplingSettings) -> list[str]:
    from recall.prompts import read_samples

    if heldout is not None:
        prompts = [sample.read for sample in read_samples(heldout.path)]
    else:
        prompts = list(dict.fromkeys(row.prompt for row in train.read()))
    return prompts[: settings.candidates]


def _last_layer(
    job: Job,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    settings: SamplingSettings,
) -> np.ndarray:
    from recall.representations import represent

    hidden_LPE = represent(
        model,
        tokenizer,
        prompts,
        batch_size=settings.batch_size,
        max_tokens=settings.max_tokens,
        last_layer_only=True,
        what=f"cluster {job.label}",
    )
    last_PE: np.ndarray = hidden_LPE[0]
    return last_PE
