"""What a merge would do, before it does it: layers, parameters, sizes, and the memory that it will need."""

from __future__ import annotations

from rich.table import Table

from recall.chunks import device_memory_needed, fit_lanes, memory_needed
from recall.devices import find_device
from recall.errors import BadInput
from recall.merge_job import check_members, find_members
from recall.merge_request import MergeRequest
from recall.methods import held_memory, moment_files
from recall.pool import Pool
from recall.results import Frozen
from recall.structure import checkpoint_layers


class LayerPlan(Frozen):
    """One layer: how many tensors and parameters it has, and its size in the output."""

    name: str
    tensors: int
    parameters: int
    bytes: int


class MergePlan(Frozen):
    """`memory` is what the merge itself needs, in bytes, `device_memory` what it needs on a GPU that is not the host's.

    Representations take the largest model in float32 besides.
    """

    models: list[str]
    layers: list[LayerPlan]
    parameters: int
    bytes: int
    memory: int
    device: str
    device_memory: int
    representations_memory: int
    threads: int
    chunk: int


def merge_plan(request: MergeRequest) -> MergePlan:
    """Check the models of a request, and say what their merge takes; nothing is written.

    Raises:
        BadInput: as `recall.merge_job.merge_models`.
    """
    if request.as_adapter:
        raise BadInput("--dry-run says what a merge into full weights takes; leave out --as-adapter to see that")
    members = find_members(request)
    check_members(request, members)
    pool = Pool(members)
    try:
        layers = checkpoint_layers(members[0], modules=request.weighting.granularity == "module")
        plans = []
        for number, name in enumerate(layers.names):
            specs = [spec for tensor, spec in pool.specs.items() if layers.of(tensor) == number]
            sizes = sum(spec.size for spec in specs), sum(spec.nbytes for spec in specs)
            plans.append(LayerPlan(name=name, tensors=len(specs), parameters=sizes[0], bytes=sizes[1]))
        held = held_memory(request.method, len(members), moment_files(members)[0], request.threads)
        lanes = fit_lanes(pool, request.threads, request.max_memory, held, find_device(request.device))
        parameters = sum(plan.parameters for plan in plans)
        return MergePlan(
            models=request.models,
            layers=plans,
            parameters=parameters,
            bytes=sum(plan.bytes for plan in plans),
            memory=memory_needed(pool, lanes, held),
            device=request.device,
            device_memory=device_memory_needed(pool, lanes),
            representations_memory=parameters * 4 if request.samples or request.generate else 0,
            threads=lanes.threads,
            chunk=lanes.chunk,
        )
    finally:
        pool.close()


def plan_table(plan: MergePlan) -> Table:
    """The plan for people."""
    table = Table(
        title=f"{len(plan.models)} models of {plan.parameters:,} parameters",
        caption=f"{plan.bytes / 1e9:.2f} GB to write; the merge needs {plan.memory / 1e6:.0f} MB "
        f"({plan.threads} threads, {plan.chunk:,} elements a chunk)"
        + (f", and {plan.device_memory / 1e6:.0f} MB on {plan.device}" if plan.device_memory else "")
        + (
            f", representations {plan.representations_memory / 1e9:.2f} GB besides, one model in float32 at a time"
            if plan.representations_memory
            else ""
        ),
    )
    for heading in ("layer", "tensors", "parameters", "MB"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for layer in plan.layers:
        table.add_row(layer.name, str(layer.tensors), f"{layer.parameters:,}", f"{layer.bytes / 1e6:.1f}")
    return table
