"""The two ways a command can end badly; both are one sentence for a person, never a traceback."""

import os
import re

CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
SECRET_NAME = re.compile(r"TOKEN(?!IZER)|PASSWORD|SECRET|API_KEY|AUTH_STRING|ACCESS_KEY")
# What a secret is called by, or where it lies, is none: a key's id `recall` would be cut out of our own sentences.
ABOUT_A_SECRET = re.compile(r"(KEY_ID|_FILE|_PATH)$")
SHORTEST_SECRET = 6


class BadInput(ValueError):
    """What the user gave cannot be used: exit code 2. The message names the thing, what was found and what to do."""


class Failed(RuntimeError):
    """The input was fine and the work still could not be done (disk full, service gone): exit code 1."""


class OutOfReach(Failed):
    """Something could not be looked at now (service gone, no permission, disk full): that says nothing about it."""


def one_line(error: Exception) -> str:
    """The first 200 characters of an error of a library, for a sentence of ours."""
    return " ".join(str(error).split())[:200]


def without_secrets(text: str) -> str:
    """The text without user and password of any URL, and without the value of any secret of the environment.

    A variable is a secret by its name: one with TOKEN, PASSWORD, SECRET, API_KEY, ACCESS_KEY or AUTH_STRING in it, but
    for those that end in KEY_ID, _FILE or _PATH.
    """
    text = CREDENTIALS.sub("***@", text)
    for name, value in os.environ.items():
        is_secret = SECRET_NAME.search(name) and not ABOUT_A_SECRET.search(name)
        if is_secret and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text
