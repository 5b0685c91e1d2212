"""A stage that counts how often it really ran, and one after it; in a module of its own, as every stage is."""

from tasks.refs import SamplesRef
from tasks.stage import Job, stage

runs = []
MACHINE = ""  # stands for what another processor does to sums


@stage(kind="samples", ref=SamplesRef)
def count_up(job: Job, number: int) -> dict[str, int]:
    """Write `number` to a file."""
    runs.append(number)
    (job.work / "half").write_text("what a killed run would go on from")
    (job.out / "number.txt").write_text(f"{MACHINE} {number}".strip())
    return {"count": number}


@stage(kind="totals", ref=SamplesRef)
def total(job: Job, counted: SamplesRef) -> dict[str, int]:
    """Copy what `count_up` wrote."""
    (job.out / "total.txt").write_text((counted.path / "number.txt").read_text())
    return {"count": counted.count}
