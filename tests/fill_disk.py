"""`python fill_disk.py ARGUMENTS`: run `recall ARGUMENTS` on a disk that is full once an expert is to be written."""

import errno
import os
from pathlib import Path


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    from flows.environment import set_defaults

    set_defaults(Path(".store"))
    from recall import finetuning

    finetuning.save_file = full
    from flows.cli import main

    main()
