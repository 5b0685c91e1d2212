"""`python fill_disk.py ARGUMENTS`: run `recall ARGUMENTS` on a disk that is full once an expert is to be written.

The expert's folder becomes a file system of one page, in a mount namespace of this process's own. Where the machine
allows none the exit code is `NO_NAMESPACE`.
"""

import os
import subprocess
import sys
from pathlib import Path

NO_NAMESPACE = 77
UNSHARE = ["unshare", "--map-root-user", "--mount"]


def full(tensors, path, **options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", path.parent], check=True)
    save_tensors(tensors, path, **options)


if __name__ == "__main__":
    if "RECALL_IN_NAMESPACE" not in os.environ:
        if subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode:
            sys.exit(NO_NAMESPACE)
        os.environ["RECALL_IN_NAMESPACE"] = "1"
        os.execvp(UNSHARE[0], [*UNSHARE, sys.executable, *sys.argv])

    from flows.environment import set_defaults

    set_defaults(Path(".store"))
    from recall import finetuning
    from recall.save_tensors import save_tensors

    finetuning.save_tensors = full
    from flows.cli import main

    main()
