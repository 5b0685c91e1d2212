"""The ledger's chain: whatever is done to it is found, and where it says that the aliases belong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recall.gates import Gate, Verdict
from recall.ledger import Entry, Standing, broken_links, standing

text = st.text(max_size=20)
scores = st.floats(-1, 1)
gates = st.builds(
    Gate,
    name=st.sampled_from(["average", "forgetting", "unseen"]),
    learning_tasks=st.lists(text, max_size=2),
    compared_with=text,
    demands=st.sampled_from([">=", "<="]),
    threshold=scores,
    estimate=st.none() | scores,
    low=st.none() | scores,
    high=st.none() | scores,
    rows=st.integers(0, 10**6),
    by_learning_task=st.dictionaries(text, scores, max_size=2),
    outcome=st.sampled_from(["pass", "fail", "borderline"]),
    note=text,
)
verdicts = st.builds(
    Verdict,
    version=text,
    champion=st.none() | text,
    outcome=st.just("pass"),
    refusals=st.just([]),
    gates=st.lists(gates, max_size=3),
    confidence=st.just(0.95),
    resamples=st.just(5000),
    seed=st.just(0),
)
moves = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["promote", "rollback"]),
        "version": st.integers(1, 9).map(str),
        "previous": st.none() | st.integers(1, 9).map(str),
        "who": text,
        "when": st.datetimes().map(lambda when: when.isoformat() + "Z"),
        "why": text,
        "verdict": st.none() | verdicts,
    }
)


def linked(moves):
    entries = []
    for number, move in enumerate(moves, start=1):
        entries.append(Entry(number=number, parent=entries[-1].digest if entries else "", **move))
    return entries


chains = st.lists(moves, min_size=1, max_size=6).map(linked)


@given(chains)
def test_a_chain_as_it_was_written_has_no_fault(entries):
    assert broken_links(entries) == []
    assert broken_links([]) == []


@given(chains)
def test_an_entry_reads_back_from_its_json_with_the_same_digest(entries):
    for entry in entries:
        read = Entry.model_validate_json(entry.to_json())
        assert read == entry
        assert read.digest == entry.digest


@given(chains, st.data())
def test_an_altered_entry_has_another_digest_and_is_found_by_the_next_one(entries, data):
    place = data.draw(st.integers(0, len(entries) - 1))
    field = data.draw(st.sampled_from(["action", "version", "previous", "who", "when", "why", "verdict"]))
    other = data.draw(moves)[field]
    changed = entries[place].model_copy(update={field: other})
    is_other = other != getattr(entries[place], field)
    assert (changed.digest != entries[place].digest) == is_other
    faults = broken_links([*entries[:place], changed, *entries[place + 1 :]])
    assert bool(faults) == (is_other and place < len(entries) - 1)
    if faults:
        assert f"entry {place + 1} was altered" in faults[0]


@given(chains.filter(lambda entries: len(entries) > 1), st.data())
def test_a_number_in_a_verdict_that_was_edited_is_found(entries, data):
    place = data.draw(st.integers(0, len(entries) - 1))
    verdict = data.draw(verdicts)
    before = entries[place].model_copy(update={"verdict": verdict})
    after = before.model_copy(update={"verdict": verdict.model_copy(update={"confidence": 0.5})})
    assert before.digest != after.digest


@given(chains.filter(lambda entries: len(entries) > 1), st.data())
def test_a_missing_entry_before_the_newest_is_named(entries, data):
    place = data.draw(st.integers(0, len(entries) - 2))
    assert f"entry {place + 1} is missing" in broken_links([*entries[:place], *entries[place + 1 :]])


@given(chains.filter(lambda entries: len(entries) > 1), st.randoms())
def test_entries_out_of_order_are_named(entries, random):
    shuffled = list(entries)
    random.shuffle(shuffled)
    assert any("out of order" in fault for fault in broken_links(shuffled)) == (shuffled != entries)


@given(chains)
def test_an_entry_that_is_there_twice_is_named(entries):
    assert "entry 1 is there twice" in broken_links([entries[0], *entries])


def test_a_beginning_that_was_cut_off_and_renumbered_is_found():
    one, two = linked([move("promote", "1"), move("promote", "2")])
    assert broken_links([two.model_copy(update={"number": 1})]) == [
        f"entry 1 names an entry before it, {one.digest[:12]}: the ledger's beginning is missing"
    ]


def move(action, version, previous=None):
    return {"action": action, "version": version, "previous": previous, "who": "ann", "when": "2026-11-24T12:00:00Z",
            "why": "", "verdict": None}  # fmt: skip


@pytest.mark.parametrize(
    ("done", "wanted"),
    [
        ([], Standing(None, None)),
        ([("promote", "1")], Standing("1", None)),
        ([("promote", "1"), ("promote", "3")], Standing("3", "1")),
        ([("promote", "1"), ("promote", "3"), ("rollback", "1")], Standing("1", None)),
        ([("promote", "1"), ("promote", "2"), ("promote", "3"), ("rollback", "2")], Standing("2", "1")),
        (
            [("promote", "1"), ("promote", "2"), ("promote", "3"), ("rollback", "2"), ("rollback", "1")],
            Standing("1", None),
        ),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1"), ("promote", "4")], Standing("4", "1")),
        ([("promote", "1"), ("promote", "2"), ("promote", "1")], Standing("1", "2")),
    ],
)
def test_where_the_aliases_belong(done, wanted):
    assert standing(linked([move(*step) for step in done])) == wanted


def test_no_default_hides_from_the_digest():
    (entry,) = linked([move("promote", "1")])
    assert json.loads(entry.to_json()).keys() == Entry.model_fields.keys()
    for model in (Entry, Verdict, Gate):
        assert all(field.is_required() for field in model.model_fields.values())
