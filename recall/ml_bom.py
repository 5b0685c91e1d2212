"""A CycloneDX 1.6 ML-BOM of a registered version: the model, what it was made from, and what it runs with.

The library has no class for a model card, so the JSON is written here and held against the schema by the library.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from recall.errors import Failed
from recall.lineage import ArtifactEntry, Files, Lineage


def ml_bom(lineage: Lineage, stream: str, version: str, time: str) -> str:
    """The BOM as JSON; equal lineages give equal serial numbers.

    Raises:
        Failed: it does not fit CycloneDX's schema.
    """
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"{stream}/{version}/{lineage.merged.fingerprint}")
    model = f"models:/{stream}/{version}"
    parts = [_base(lineage), *_data_sets(lineage), _expert(lineage)]
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"timestamp": time, "component": _model(lineage, stream, version, model)},
        "components": parts,
        "dependencies": [
            {"ref": model, "dependsOn": sorted(part["bom-ref"] for part in parts)},
            *({"ref": part["bom-ref"]} for part in parts),
        ],
    }
    text = json.dumps(bom, indent=1, ensure_ascii=False)
    _check(text)
    return text


def _model(lineage: Lineage, stream: str, version: str, reference: str) -> dict[str, Any]:
    scores = [
        {"type": name.removeprefix("recall/"), "value": str(score)}
        for name, score in (lineage.metrics or {}).items()
        if name.startswith("recall/")
    ]
    card: dict[str, Any] = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-generation",
            "datasets": [{"ref": f"data:{entry.name}"} for entry in lineage.data_sets],
        }
    }
    if scores:
        card["quantitativeAnalysis"] = {"performanceMetrics": scores}
    merge = "RECALL (arXiv 2510.20479)" + (" with moments" if lineage.merge == "recall_moments" else "")
    properties = {
        "recall:git_commit": lineage.git_commit or "unknown",
        "recall:environment_lock_sha256": lineage.environment_lock_sha256,
        "recall:update_key": lineage.update_key,
        **{f"recall:seed:{name}": str(seed) for name, seed in (lineage.seeds or {}).items()},
        **{f"recall:machine:{name}": str(value) for name, value in (lineage.environment or {}).items()},
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": stream,
        "version": version,
        "description": f"A language model merged layer by layer with {merge}",
        "modelCard": card,
        "properties": [{"name": name, "value": value} for name, value in properties.items()],
        **_hashes(_weights(lineage.merged)),
    }


def _base(lineage: Lineage) -> dict[str, Any]:
    base = lineage.base_model
    return {
        "type": "machine-learning-model",
        "bom-ref": "base-model",
        "name": base.path or "base model",
        "version": base.dvc_hash,
        **_hashes(_only_weights(base.files)),
    }


def _data_sets(lineage: Lineage) -> list[dict[str, Any]]:
    return [
        {
            "type": "data",
            "bom-ref": f"data:{entry.name}",
            "name": entry.name,
            "version": entry.dvc_hash,
            "data": [{"type": "dataset", "name": name} for name in entry.files or {}] or [{"type": "dataset"}],
            "properties": [
                {"name": "recall:path", "value": entry.path},
                {"name": "recall:trained_on", "value": str(entry.trained_on).lower()},
                *({"name": f"recall:rows:{split}", "value": str(rows)} for split, rows in entry.rows.items()),
                *(
                    {"name": f"recall:sha256:{name}", "value": digest.sha256}
                    for name, digest in (entry.files or {}).items()
                ),
            ],
        }
        for entry in lineage.data_sets
    ]


def _expert(lineage: Lineage) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": "expert",
        "name": f"LoRA expert on {lineage.learning_task or 'the newest learning task'}",
        "version": lineage.expert.fingerprint,
        **_hashes(_weights(lineage.expert)),
    }


def _weights(entry: ArtifactEntry) -> list[str]:
    return _only_weights(entry.files)


def _only_weights(files: Files | None) -> list[str]:
    return [digest.sha256 for name, digest in (files or {}).items() if name.endswith(".safetensors")]


def _hashes(digests: list[str]) -> dict[str, Any]:
    """A component has one hash an algorithm; of a model in shards every file's stands in the lineage instead."""
    return {"hashes": [{"alg": "SHA-256", "content": digests[0]}]} if len(digests) == 1 else {}


def _check(text: str) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if fault is not None:
        raise Failed(f"the ML-BOM does not fit CycloneDX 1.6: {' '.join(str(fault).split())[:300]}")
