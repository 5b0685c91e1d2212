"""`fill_disk.py ARGUMENTS`: run `recall ARGUMENTS` on a disk that is full once an expert is to be written.

The expert's folder becomes a file system of one page, in a mount namespace of this process's own, which must have one
thread. Where the machine allows none the exit code is `NO_NAMESPACE`.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

NO_NAMESPACE = 77
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h; Python has `os.unshare` from 3.12 on


def enter_namespace():
    """As `unshare --map-root-user --mount` does."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNS):
        sys.exit(NO_NAMESPACE)
    try:
        for file, line in {"setgroups": "deny", "uid_map": f"0 {user} 1", "gid_map": f"0 {group} 1"}.items():
            Path("/proc/self", file).write_text(line)
    except OSError:
        sys.exit(NO_NAMESPACE)
    for command in ("mount --make-rprivate /", "mount -t tmpfs tmpfs /mnt", "umount /mnt"):
        if subprocess.run(command.split()).returncode:
            sys.exit(NO_NAMESPACE)


def full(tensors, path, **options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", path.parent], check=True)
    save_tensors(tensors, path, **options)


if __name__ == "__main__":
    enter_namespace()

    from recall import finetuning
    from recall.save_tensors import save_tensors

    finetuning.save_tensors = full
    from flows.cli import main

    main()
