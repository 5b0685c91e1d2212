"""A few faults of `make chaos`, so that CI holds what its report says; test_kill.py kills in every stage."""

import pytest

from chaos.__main__ import FAULTS, put_to_the_test
from chaos.bench import Bench, end_orphans

pytestmark = pytest.mark.nightly
SOME = [
    "kill -9, 3 of 20",
    "kill -9, 12 of 20",
    "kill -9, 19 of 20",
    "kill -9 while databases are first made, early",
    "two runs started together",
    "artifact files, a bit flipped",
    "Prefect's results cut short",
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("chaos"))
    yield made
    made.close()
    end_orphans(made.room)


def test_the_bench_kills_at_twenty_instants_and_more():
    assert sum(name.startswith("kill -9, ") for name in FAULTS) == 20
    assert set(SOME) < set(FAULTS)


@pytest.mark.parametrize("fault", SOME)
def test_after_the_fault_the_same_command_loses_nothing(fault, bench):
    verdict = put_to_the_test(bench, fault, seed=0)
    assert verdict.verdict == "survived", verdict.problems


def test_the_bench_sees_what_is_lost(bench):
    """A bench that finds nothing wrong with a run that was never made again would prove nothing."""
    from chaos.checks import problems

    victim = bench.fresh("half a run")
    victim.project.params(lambda values: values["stream"].update(learning_tasks=["reviews"]))
    victim.project.commit("one learning task")
    code, output = victim.finish()
    assert code == 0, output
    (victim.folder / ".store" / "merged" / ".f.making").mkdir()
    next((victim.folder / ".store" / "samples").glob("*/samples.jsonl")).write_text("other")
    said = "\n".join(problems(victim, bench.undisturbed))
    for lost in (
        "registered versions are",
        "half-made: merged/.f.making",
        "samples.jsonl has",
        "merged/",
        "result.json",
    ):
        assert lost in said
