"""The lines of a results file of `recall compare`, as the scripts here take them."""

from collections import Counter
from pathlib import Path

from recall.comparison import newest
from recall.comparison_line import Line, Setting, read_lines
from recall.errors import BadInput


def lines_of(file: Path) -> list[Line]:
    """Every line; BadInput where there is none: a mistyped name must not pass for a file that adds nothing."""
    lines = read_lines(file)
    if not lines:
        raise BadInput(
            f"{file} is missing or has no results; check its name, or make some with `recall compare --results {file}`"
        )
    return lines


def comparable(lines: list[Line]) -> dict[str, list[Line]]:
    """Of each group of lines that may be compared those that count, as `recall.comparison.compare_lines` takes them.

    A group is called by its setting; the second one of a setting, on other data say, `stream-2`.
    """
    groups: dict[tuple[Setting, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.setting, line.shared), []).append(line)
    met: Counter[Setting] = Counter()
    named = {}
    for (setting, _), group in groups.items():
        met[setting] += 1
        named[f"{setting}-{met[setting]}" if met[setting] > 1 else setting] = newest(group)
    return named
