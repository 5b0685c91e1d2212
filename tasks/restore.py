"""What an update registered comes back from MLflow into a store that lost it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from recall.errors import Failed
from tasks import registry
from tasks.records import UpdateRecord
from tasks.refs import ArtifactRef, file_sha256, weights_sha256
from tasks.remote import unfit
from tasks.store import Store, seal

# By kind: where an update's run has the files; the merged model's lie with the version.
IN_RUN = {"experts": "expert", "moments": "moments"}


def restore(store: Store, stream: str, record: UpdateRecord, ref: ArtifactRef) -> None:
    """Bring an update's merged model, expert or moments back from MLflow into a store that does not have it.

    Raises:
        Failed: what MLflow holds is not what was registered.
    """
    import mlflow

    version = registry.client().get_model_version(stream, str(record.result.version))
    part = IN_RUN.get(ref.kind)
    origin = f"runs:/{registry.run_of(version)}/{part}" if part else version.source
    work = store.work(f"restore-{ref.fingerprint}")
    with store.lock(ref.fingerprint):
        try:
            shutil.rmtree(work, ignore_errors=True)
            if unfit(store, ref.kind, ref.fingerprint, lambda found: found["sha256"] == ref.sha256) is None:
                return
            local = Path(mlflow.artifacts.download_artifacts(origin, dst_path=str(store.make_work(work.name))))
            with store.publishing(ref.kind, ref.fingerprint) as out:
                for file in (local if part else local / "model").iterdir():
                    if file.is_symlink() or not file.is_file():
                        raise Failed(f"version {version.version} of {stream}: {file.name} in {origin} is no plain file")
                    if file.name != "manifest.json":
                        os.replace(file, out / file.name)
                fields = ref.model_dump(mode="json", exclude={"kind", "fingerprint", "path", "sha256"})
                manifest = {"kind": ref.kind, "fingerprint": ref.fingerprint, "restored_from": origin, "fields": fields}
                weights = weights_sha256({file.name: file_sha256(file) for file in out.glob("*.safetensors")})
                if seal(out, manifest) != ref.sha256 or (part is None and weights != version.tags[registry.SHA256]):
                    raise Failed(
                        f"version {version.version} of {stream}: MLflow holds other files than were registered"
                    )
        finally:
            shutil.rmtree(work, ignore_errors=True)
