"""The cache key of a stage: its name, its code with all helpers, the settings it reads and its inputs' fingerprints."""

from pathlib import Path

import pytest

import tasks.fingerprints
from recall.settings import SamplingSettings
from tasks.fingerprints import fingerprint, source_digest, sources
from tasks.refs import CheckpointRef

EXPERT = CheckpointRef(kind="experts", fingerprint="abc", path=Path("/somewhere"), sha256="0")


def key(stage="cluster", module="tasks.cluster", **inputs):
    return fingerprint(stage, source_digest(module), {"expert": EXPERT, "settings": SamplingSettings(), **inputs})


@pytest.fixture
def edited(monkeypatch):
    """Pretend that a module's source was edited."""

    def edit(module):
        original = tasks.fingerprints._source
        monkeypatch.setattr(
            tasks.fingerprints, "_source", lambda name: original(name) + (b"\n# edited" if name == module else b"")
        )

    return edit


def test_it_is_the_same_in_every_process_and_for_every_place():
    moved = EXPERT.model_copy(update={"path": Path("/elsewhere"), "sha256": "1"})
    assert key() == key(expert=moved)


def test_two_stages_with_equal_inputs_never_collide():
    assert key(stage="cluster") != key(stage="represent")


def test_another_input_or_setting_makes_another_key():
    changed = [
        key(expert=EXPERT.model_copy(update={"fingerprint": "abd"})),
        key(settings=SamplingSettings(clusters=7)),
        key(pool=[EXPERT]),
        key(pool=[EXPERT, EXPERT]),
    ]
    assert len({key(), *changed}) == 5


def test_editing_the_stage_makes_another_key(edited):
    before = key()
    edited("tasks.cluster")
    assert key() != before


def test_editing_a_helper_that_the_stage_uses_makes_another_key(edited):
    before = key()
    edited("recall.layers")  # imported by recall.representations, which tasks.cluster imports
    assert key() != before


def test_editing_what_the_stage_does_not_use_changes_nothing(edited):
    before = key()
    edited("recall.evaluation")
    edited("recall.report")
    assert key() == before


METHOD_OF_STAGE = {
    "versioning": {"errors", "learning_tasks"},
    "finetune": {"finetuning", "ewc", "holding", "replay", "answer_logits", "checkpoints", "encoding"},
    "fisher": {"ewc", "answer_logits", "encoding", "loaded_models"},
    "cluster": {"sampling", "representations", "layers", "loaded_models", "checkpoints"},
    "represent": {"representations", "layers", "loaded_models", "checkpoints"},
    "weigh": {"similarity", "weighting", "layers", "structure"},
    "merge": {"merging", "lora", "structure", "layers", "tensor_files"},
    "evaluate": {"evaluation", "answer_logits", "encoding", "generation", "likelihood", "text_metrics"},
}
NOT_OF_STAGE = {
    "finetune": {"evaluation", "similarity", "report"},
    "fisher": {"finetuning", "replay", "merging", "evaluation"},
    "cluster": {"finetuning", "ewc", "merging", "similarity"},
    "merge": {"finetuning", "evaluation", "sampling"},
    "evaluate": {"finetuning", "merging", "sampling"},
}


@pytest.mark.parametrize("stage", METHOD_OF_STAGE)
def test_a_stage_depends_on_the_code_that_it_uses_and_on_no_other(stage):
    used = {name.removeprefix("recall.") for name in sources(f"tasks.{stage}") if name.startswith("recall.")}
    assert used >= METHOD_OF_STAGE[stage]
    assert not used & NOT_OF_STAGE.get(stage, set())
