"""`python watched.py FILE ARGUMENTS`: run `recall ARGUMENTS`, and write to FILE what was unpickled, and by whom."""

import atexit
import json
import pickle
import sys
import traceback
from pathlib import Path

# Each is a list: what was named ("module.name", or the file of a torch.load), and the caller.
seen = []


def caller():
    """The innermost frame that is neither this file's nor a pickle module's."""
    frames = [f"{frame.filename}:{frame.name}" for frame in traceback.extract_stack()]
    return next(
        (frame for frame in reversed(frames) if "/pickle.py" not in frame and "watched.py" not in frame), "control"
    )


def hook(event, arguments):
    if event == "pickle.find_class":
        seen.append(["find_class", ".".join(arguments), caller()])


def watch_torch():
    """`torch.load` has an interpreter of its own for the restricted format, which tells no hook."""
    import torch

    original = torch.load

    def load(*arguments, **named):
        seen.append(["torch.load", f"{arguments[0]} weights_only={named.get('weights_only')}", caller()])
        return original(*arguments, **named)

    torch.load = load


if __name__ == "__main__":
    report = Path(sys.argv.pop(1))
    sys.addaudithook(hook)
    atexit.register(lambda: report.write_text(json.dumps(seen)))
    pickle.loads(pickle.dumps(Path()))  # the hook's own proof that it works
    from flows.environment import set_defaults

    set_defaults(Path(".store"))
    watch_torch()
    from flows.cli import main

    main()
