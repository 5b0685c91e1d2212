"""Promotion as a flow: judge a version by the gates, write the move down, let the aliases follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from prefect.states import Completed

from flows.moves import Move, new_entry, outcome_of, sound_ledger, version_to_judge, who_came_first, whoami
from flows.orphans import untagged_tasks
from recall.gates import Verdict
from recall.gates_table import markdown
from recall.ledger import Entry, standing
from recall.load_settings import load_settings
from recall.promotion_settings import PromotionSettings
from tasks.promote import judge_version, move_champion, now, tag_version
from tasks.refs import digest


class Approval(RunInput):
    """What a person is asked where the gates are borderline."""

    approve: bool = False
    by: str
    reason: str


@flow(name="promote", flow_run_name="promote")
def promote(
    config: str = "params.yaml",
    profile: str | None = None,
    overrides: list[str] | None = None,
    version: str | None = None,
    why: str = "",
    who: str | None = None,
) -> State[dict[str, Any]]:
    """Make a version, by default the newest, champion if it passes the gates; says what came of it as JSON."""
    settings = load_settings(Path(config), profile, overrides)
    with untagged_tasks():
        done = promote_version(settings.stream.name, settings.promotion, version, why, who or whoami())
    return Completed(message=done.said, data=done.model_dump(mode="json"))


def promote_version(stream: str, settings: PromotionSettings, version: str | None, why: str, who: str) -> Move:
    """Judge, and move the champion where every gate passes, or a person approves what is borderline.

    Raises:
        BadInput: there is no such version.
        Failed: the ledger does not hold, or scores are missing.
    """
    entries = sound_ledger(stream)
    champion = standing(entries).champion
    number, compared = version_to_judge(stream, version, champion)
    if number == champion:
        return outcome_of(stream, number, f"version {number} of {stream} is the champion already; nothing was changed")
    verdict: Verdict = judge_version(stream, number, compared, settings)
    create_markdown_artifact(markdown(stream, verdict), key="promotion", description="What the gates found")
    asks = verdict.outcome == "borderline" and settings.approval
    approval = _ask(stream, verdict, settings, entries) if asks else None
    approved = approval is not None and approval.approve
    if verdict.outcome == "fail" or (verdict.outcome == "borderline" and not approved):
        said = _refusal(stream, verdict, settings, approval)
        tag_version(stream, verdict, f"refused {now()}: {said}")
        return outcome_of(stream, number, said, verdict)
    if approval is not None:
        why = "; ".join(filter(None, [why, f"approved by {approval.by}: {approval.reason}", verdict.why]))
    entry = new_entry(entries, "promote", number, who, why or verdict.why, verdict)
    if move_champion(stream, entry):
        said = (
            f"version {number} of {stream} is the champion now, after {champion or 'none'}; ledger entry {entry.number}"
        )
        tag_version(stream, verdict, f"promoted {entry.when}: {entry.why}")
        return outcome_of(stream, number, said, verdict, entry)
    said = f"version {number} of {stream} was not promoted by this command: {who_came_first(stream)}"
    done = outcome_of(stream, number, said, verdict)
    if done.champion != number:
        tag_version(stream, verdict, f"refused {now()}: {said}")
    return done


def _ask(stream: str, verdict: Verdict, settings: PromotionSettings, entries: list[Entry]) -> Approval | None:
    """A person's word on a borderline verdict, or None where nobody can be asked.

    The run ends here and starts anew with the answer, so whatever changed meanwhile is judged again before this point.
    An answer is kept under what it was given for: another version, verdict or champion is asked about anew.
    """
    if deployment.id is None:  # Prefect suspends deployed runs alone: it has to know how to start this one anew
        return None
    text = markdown(stream, verdict)
    tag_version(stream, verdict, f"waits for approval since {now()}: {verdict.why}")
    form = Approval.with_initial_data(description=text, by="", reason="")
    asked = digest({"verdict": verdict.model_dump(mode="json"), "ledger": entries[-1].digest if entries else ""})
    return suspend_flow_run(wait_for_input=form, timeout=int(settings.approval_hours * 3600), key=f"approval-{asked}")


def _refusal(stream: str, verdict: Verdict, settings: PromotionSettings, approval: Approval | None) -> str:
    stays = f"version {verdict.champion} stays champion" if verdict.champion else "there is still no champion"
    said = f"version {verdict.version} of {stream} was not promoted, {stays}: {verdict.why}"
    if approval is not None:
        return f"{said}; not approved by {approval.by}: {approval.reason}"
    if verdict.outcome == "borderline" and settings.approval:
        return f"{said}; to have somebody approve it, run the deployment (`prefect deployment run promote/promote`)"
    return said
