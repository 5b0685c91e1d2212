"""What of a machine decides the bits of a result."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any


@functools.cache
def environment() -> dict[str, Any]:
    """What an audit wants to know of the machine; a manifest adds the thread count, which changes sums on a CPU."""
    import torch
    import transformers

    from recall.loading import training_dtype

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu_model": _cpu_model(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "dtype": str(training_dtype("auto")).removeprefix("torch."),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }


def _cpu_model() -> str:
    """As Linux names it, or what the platform says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
