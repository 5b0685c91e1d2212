"""A stage that counts how often it really ran; in a module of its own, as every stage is."""

from tasks.refs import SamplesRef
from tasks.stage import Job, stage

runs = []


@stage(kind="samples", ref=SamplesRef)
def count_up(job: Job, number: int) -> dict[str, int]:
    """Write `number` to a file."""
    runs.append(number)
    (job.work / "half").write_text("what a killed run would go on from")
    (job.out / "number.txt").write_text(str(number))
    return {"count": number}
