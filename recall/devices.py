"""Where a merge's arithmetic may run besides the CPU's own cores."""

from __future__ import annotations

import torch

from recall.errors import BadInput, one_line


def find_device(name: str) -> torch.device | None:
    """The GPU that `cuda` or `cuda:1` names; None for `cpu`.

    The first use of a GPU is here, so that what its libraries take counts as the process's memory from then on.

    Raises:
        BadInput: torch cannot use it.
    """
    if name == "cpu":
        return None
    if not torch.cuda.is_available():
        raise BadInput(f"--device {name}: torch {torch.__version__} sees no GPU; leave out --device to use the CPU")
    try:
        return torch.empty(1, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise BadInput(f"--device {name} cannot be used ({one_line(error)}); name another, or leave it out") from error


def free_memory(device: torch.device | None) -> int | None:
    """Bytes that are free on a GPU; None where nothing but the host's memory counts."""
    return torch.cuda.mem_get_info(device)[0] if device and device.type == "cuda" else None
