"""Where the stages run; no setting here changes a result, so none is part of a fingerprint or of an update's key."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recall.results import Frozen


class RunnerSettings(Frozen):
    """In this process one after the other, or on the workers of a Dask cluster (docs/distributed.md)."""

    kind: Literal["local", "dask"] = "local"
    address: str | None = Field(
        None, pattern=r"^(tcp|tls|ws|wss)://", description="a running scheduler; null starts workers on this machine"
    )
    workers: int = Field(2, gt=0, description="how many are started where there is no address")

    @model_validator(mode="after")
    def _address_is_of_dask(self) -> RunnerSettings:
        if self.kind == "local" and self.address is not None:
            raise ValueError(f"the address {self.address} is read by kind dask alone; set kind to dask, or take it out")
        return self
