"""Promotion's effects: the ledger's entry, the aliases that follow from it, and the tags that say why. Never cached."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from recall.gates import Verdict, judge, refusal
from recall.ledger import Entry
from recall.promotion_settings import PromotionSettings
from tasks import ledger, registry
from tasks.audit_marks import failures
from tasks.register import may_pass
from tasks.scores import scores_to_judge

PROMOTION = "recall.promotion"
VERDICT = "recall.verdict"


@task(name="judge", task_run_name="judge: {stream} version {number}", cache_policy=NO_CACHE)
def judge_version(stream: str, number: str, champion: str | None, settings: PromotionSettings) -> Verdict:
    """The gates' verdict on a version against the champion; one that `recall run` has not registered has no scores."""
    refused = refusals(stream, number)
    if registry.RUN not in registry.version(stream, number).tags:
        return refusal(number, champion, refused, settings)
    return judge(number, champion, refused, *scores_to_judge(stream, number, champion), settings)


@task(
    name="promote",
    task_run_name="promote: {stream} version {entry.version}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_condition_fn=may_pass,
    retry_delay_seconds=5,
)
def move_champion(stream: str, entry: Entry) -> bool:
    """Append the entry and let the aliases follow; False where another entry was there first. Safe to repeat."""
    won = ledger.append(stream, entry)
    ledger.follow(stream)
    return won


@task(name="say why", cache_policy=NO_CACHE, retries=2, retry_condition_fn=may_pass, retry_delay_seconds=5)
def tag_version(stream: str, verdict: Verdict, said: str) -> None:
    """Put what came of it on the version: a sentence, and the verdict with every number."""
    registry.client().set_model_version_tag(stream, verdict.version, PROMOTION, said)
    registry.client().set_model_version_tag(stream, verdict.version, VERDICT, verdict.model_dump_json())


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def refusals(stream: str, number: str) -> list[str]:
    """Why a version can never be promoted as it is, one sentence each."""
    tags = registry.version(stream, number).tags
    found = []
    if tags.get("recall.draft") != "false":
        because = tags.get("recall.draft_because") or "nothing says what it was made from"
        found.append(f"it is a draft ({because})")
    return found + [f"its audit {verdict}" for verdict in failures(tags)]
