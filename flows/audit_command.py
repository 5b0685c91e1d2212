"""`recall audit` and `recall sign`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.environment import set_defaults
from flows.one_sentence import Debug, Json, errors_in_one_sentence
from recall.audit_verdicts import AuditReport, Level
from recall.progress import console

Uri = Annotated[str, typer.Argument(metavar="MODEL_URI", help="models:/NAME@champion or models:/NAME/7")]


def audit(
    model_uri: Uri,
    level: Annotated[
        Level,
        typer.Option(help="hashes: every file checked; merge: merged again too; full: retrained from the data too"),
    ] = "hashes",
    out: Annotated[
        Path | None, typer.Option(help="folder for audit.html, audit.json, model_card.md and ml_bom.json")
    ] = None,
    store: Annotated[Path, typer.Option(help="the artifact store, whose copies are checked too")] = Path(".store"),
    public_key: Annotated[Path | None, typer.Option(help="check the signature with this key (PEM)")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Rebuild what a registered model was made from, and check every link; exit code 1 unless all hold."""
    with errors_in_one_sentence(debug):
        set_defaults(store, debug)
        from flows.audit_levels import checked_key, examine
        from flows.audit_outputs import write_outputs

        report, lineage = examine(model_uri, level, store, checked_key(public_key))
        folder = write_outputs(report, lineage, out)
        if as_json:
            print(report.model_dump_json(indent=1))
        else:
            _show(report, folder)
    if report.outcome != "passed":
        sys.exit(1)


def sign(
    model_uri: Uri,
    key: Annotated[
        Path | None, typer.Option(help="elliptic-curve private key (PEM); without it RECALL_SIGNING_KEY names one")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Sign a registered version: its model folder, its lineage and its name; `recall audit --public-key` checks it."""
    with errors_in_one_sentence(debug):
        set_defaults(Path(".store"), debug)
        from tasks import signing
        from tasks.audit_source import find_version

        private_key = signing.key_path(key)
        stream, number = find_version(model_uri)
        run_id = signing.sign(stream, number, private_key)
        if as_json:
            print(json.dumps({"stream": stream, "version": number, "run_id": run_id, "signature": signing.SIGNATURE}))
        else:
            console.print(f"signed version {number} of {stream}", highlight=False)


def _show(report: AuditReport, folder: Path) -> None:
    for link in [*report.failed, *report.unknown]:
        typer.echo(f"{link.status}: {link.sentence}")
    typer.echo(report.verdict)
    typer.echo(f"report: {(folder / 'audit.html').resolve()}")
