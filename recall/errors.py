"""The two ways a command can end badly; both are one sentence for a person, never a traceback."""


class BadInput(ValueError):
    """What the user gave cannot be used: exit code 2. The message names the thing, what was found and what to do."""


class Failed(RuntimeError):
    """The input was fine and the work still could not be done (disk full, service gone): exit code 1."""


def one_line(error: Exception) -> str:
    """The first 200 characters of an error of a library, for a sentence of ours."""
    return " ".join(str(error).split())[:200]
