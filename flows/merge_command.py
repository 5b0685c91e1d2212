"""`recall merge` and `recall moments`: the method on any checkpoints, without a stream, a store or a registry."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows.one_sentence import Debug, Json, errors_in_one_sentence
from recall.merge_settings import MomentsWeighting
from recall.progress import console

METHOD_HELP = (
    "recall, average, task_arithmetic, lm_cocktail, slerp, ties, dare, pruned_average, regmean or recall_moments "
    "(the last two after recall moments)"
)


def merge(
    model: Annotated[list[str], typer.Option(help="a folder, a hub id or a LoRA adapter; the newest last")],
    out: Annotated[Path, typer.Option(help="the folder to write; must not exist")],
    samples: Annotated[
        Path | None, typer.Option(help="JSON lines with text or prompt: what the weights come from")
    ] = None,
    generate: Annotated[
        int | None, typer.Option(help="instead: so many texts that the newest model makes up itself")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="instead: a recall.json with the weights")] = None,
    method: Annotated[str, typer.Option(help=METHOD_HELP)] = "recall",
    clusters: Annotated[int, typer.Option(help="how many typical samples to choose by K-means")] = 20,
    all_samples: Annotated[bool, typer.Option("--all-samples", help="use every sample")] = False,
    similarity: Annotated[str, typer.Option(help="rbf, cka, cosine, or depth (a fixed fall)")] = "rbf",
    sigma: Annotated[str, typer.Option(help="of rbf: median, or one number for all layers")] = "median",
    temperature: Annotated[float, typer.Option(help="of the softmax over models")] = 1.0,
    alignment_threshold: Annotated[float, typer.Option(help="less alike at a layer: no weight there")] = 0.0,
    granularity: Annotated[str, typer.Option(help="what shares a weight: model, group, layer or module")] = "layer",
    group_size: Annotated[int, typer.Option(help="blocks in a group")] = 4,
    pooling: Annotated[str, typer.Option(help="over a sample's tokens: mean, last or skip_first")] = "mean",
    max_tokens: Annotated[
        int | None, typer.Option(help="cut longer samples on the left; without it they are refused")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="samples that are read together")] = 16,
    scale: Annotated[float, typer.Option(help="of task vectors")] = 1.0,
    density: Annotated[float, typer.Option(help="share of a task vector that stays: ties, dare, pruned_average")] = 0.2,
    fraction: Annotated[float, typer.Option(help="of the way to the second model: slerp")] = 0.5,
    loss_temperature: Annotated[float, typer.Option(help="of the softmax over losses: lm_cocktail")] = 1.0,
    shrink: Annotated[float, typer.Option(help="of off-diagonal second moments: regmean, recall_moments")] = 0.9,
    seed: Annotated[int, typer.Option(help="of clustering, of what is generated, and of what DARE drops")] = 0,
    as_adapter: Annotated[bool, typer.Option("--as-adapter", help="write one LoRA adapter, not full weights")] = False,
    rank: Annotated[int | None, typer.Option(help="cut the adapter to this rank; the error is stated")] = None,
    threads: Annotated[int | None, typer.Option(help="default: the free cores")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda (cuda:1, ...), for methods that are weighted sums")] = "cpu",
    max_memory: Annotated[str | None, typer.Option(help="for the merge itself, e.g. 500MB")] = None,
    no_hashes: Annotated[
        bool, typer.Option("--no-hashes", help="leave the inputs' SHA-256 out of recall.json")
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="leave out the merged model's perplexity on the samples")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="show layers, sizes and memory of a merge into full weights; write nothing"),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge models of one architecture layer by layer, by given weights or by how alike they represent samples."""
    started = time.monotonic()
    with errors_in_one_sentence(debug):
        from recall.merge_request import merge_request

        request = merge_request(
            models=model,
            out=out,
            samples=samples,
            generate=generate,
            weights=weights,
            method=method,
            clusters=None if all_samples else clusters,
            seed=seed,
            weighting={
                "similarity": similarity,
                "sigma": sigma,
                "temperature": temperature,
                "alignment_threshold": alignment_threshold,
                "granularity": granularity,
                "group_size": group_size,
            },
            merging={
                "scale": scale,
                "density": density,
                "fraction": fraction,
                "loss_temperature": loss_temperature,
                "shrink": shrink,
                "seed": seed,
            },
            representations={"batch_size": batch_size, "pooling": pooling},
            max_tokens=max_tokens,
            as_adapter=as_adapter,
            rank=rank,
            threads=threads,
            device=device,
            max_memory=max_memory,
            hash_inputs=not no_hashes,
            check=not no_check,
        )
        if dry_run:
            from recall.merge_plan import merge_plan, plan_table

            plan = merge_plan(request)
            print(plan.model_dump_json(indent=1)) if as_json else Console().print(plan_table(plan))
            return
        from recall.merge_job import merge_models

        record = merge_models(request)
    for warning in record.warnings:
        console.print(f"[yellow]warning[/]: {escape(warning)}", highlight=False, soft_wrap=True)
    if as_json:
        print(record.model_dump_json(indent=1))
        return
    error = "" if record.adapter_error is None else f", relative error of the adapter {record.adapter_error:.2g}"
    print(f"{len(record.models)} models merged in {time.monotonic() - started:.1f} s{error}: {out}")


def moments(
    model: Annotated[str, typer.Option(help="a folder, a hub id or a LoRA adapter")],
    samples: Annotated[Path, typer.Option(help="JSON lines with text or prompt: the model's typical samples")],
    out: Annotated[Path | None, typer.Option(help="the file; by default moments.safetensors in the model")] = None,
    max_tokens: Annotated[int, typer.Option(help="cut longer samples on the left")] = 512,
    batch_size: Annotated[int, typer.Option(help="samples that are read together")] = 16,
    rank: Annotated[int | None, typer.Option(min=1, help="keep so many directions of each matrix; default all")] = None,
    weighting: Annotated[
        MomentsWeighting, typer.Option(help="inputs count alike, or as the answer responds to them")
    ] = "uniform",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Keep the second moments of a model's layer inputs, for two methods of `recall merge`; no text is kept."""
    with errors_in_one_sentence(debug):
        from recall.moments_job import keep_moments

        path = keep_moments(
            model, samples, out, batch_size=batch_size, max_tokens=max_tokens, rank=rank, weighting=weighting
        )
    size = path.stat().st_size
    print(json.dumps({"moments": str(path), "bytes": size}) if as_json else f"{path}: {size / 1e6:.1f} MB")
