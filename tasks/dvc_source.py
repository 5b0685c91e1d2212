"""How MLflow names a data set that DVC tracks."""

from __future__ import annotations

from typing import Any

from mlflow.data.dataset_source import DatasetSource


class DvcSource(DatasetSource):
    """A folder under DVC: its path, its hash, and the Git commit at which that hash was read."""

    def __init__(self, path: str, dvc_hash: str, git_commit: str | None) -> None:
        self.path = path
        self.dvc_hash = dvc_hash
        self.git_commit = git_commit

    @staticmethod
    def _get_source_type() -> str:
        return "dvc"

    def load(self) -> str:
        """`dvc get` command that brings the rows."""
        revision = f" --rev {self.git_commit}" if self.git_commit else ""
        return f"dvc get . {self.path}{revision}"

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> DvcSource:
        raise TypeError("a DVC source is made from a path and a hash")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON."""
        return {"path": self.path, "dvc_hash": self.dvc_hash, "git_commit": self.git_commit}

    @classmethod
    def from_dict(cls, source_dict: dict[str, Any]) -> DvcSource:
        """Read back what `to_dict` wrote."""
        return cls(**source_dict)
