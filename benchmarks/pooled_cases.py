"""One method against others over the cases of several results files, as one difference with an interval.

    python benchmarks/pooled_cases.py FILE.jsonl ... --ours "recall_moments merging.hold=10" [--theirs regmean]

prints a Markdown table: a line for each file, and one for all cases together; without --theirs a line for each other
method, over all cases that both went through. For each of 2000 resamples cases are drawn with replacement out of all
files, so that how streams differ counts as chance too, and test rows as `recall.comparison` draws them: the same ones
wherever the same rows were answered. Cases weigh the same whatever their stream. The same seed and order in two files,
on a CPU and on a GPU say, whose sums give other models, are two cases; give no file that repeats another one's on the
same machine.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from results_lines import comparable, lines_of

from recall.comparison import RESAMPLES, drawn_scores, interval, over_cases
from recall.comparison_line import Line
from recall.comparison_measures import FORGETTING, SEEN, UNSEEN, measures, score_of
from recall.comparison_table import label_of
from recall.errors import BadInput, Failed
from recall.markdown import escaped
from recall.text_files import write_text

MEASURES = (SEEN, UNSEEN, FORGETTING)
Draws = dict[str, NDArray[np.float64]]  # by measure: first the difference itself, then that of every resample


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--ours", required=True, metavar="LABEL", help="a method, with what was changed of it")
    parser.add_argument("--theirs", metavar="LABEL", help="against this one alone, a line a file")
    parser.add_argument("--out", type=Path, help="write the table there instead")
    given = parser.parse_args(arguments)
    try:
        files = {file.stem: lines_of(file) for file in given.files}
        if len(files) < len(given.files):
            raise BadInput("two of the files have one name; give each once, or rename one")
        found = table(files, given.ours, given.theirs) if given.theirs else table_of_methods(files, given.ours)
        write_text(given.out, found + "\n") if given.out else print(found)
    except (BadInput, Failed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    return 0


def table(files: dict[str, list[Line]], ours: str, theirs: str) -> str:
    """A line a file and one for all: mean difference in points, interval, cases won and lost."""
    found = {name: case_differences(lines, ours, theirs) for name, lines in files.items()}
    for name, cases in found.items():
        if not cases:
            raise BadInput(f"{name} has no case that both {ours} and {theirs} went through; leave the file out")
    rows = {escaped(name): cases for name, cases in found.items()}
    rows["**all cases**"] = [case for cases in found.values() for case in cases]
    return _markdown(f"{label_of(ours)} minus {label_of(theirs)}", rows)


def table_of_methods(files: dict[str, list[Line]], ours: str) -> str:
    """A line for each other method, over all cases of all files that both went through, as `table` has them."""
    labels = dict.fromkeys(line.label for lines in files.values() for line in lines if line.label != ours)
    rows = {}
    for theirs in labels:
        cases = [case for lines in files.values() for case in case_differences(lines, ours, theirs)]
        if cases:
            rows[escaped(label_of(theirs))] = cases
    if not rows:
        known = ", ".join(labels) or "no others"
        raise BadInput(f"no file has a case that {ours} and another method went through; they have {known}")
    return _markdown(f"{label_of(ours)} minus it", rows)


def _markdown(head: str, rows: dict[str, list[Draws]]) -> str:
    columns = [escaped(head), "cases", *MEASURES]
    cells = [[name, str(len(cases)), *_cells(cases)] for name, cases in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells])


def case_differences(lines: list[Line], ours: str, theirs: str, resamples: int = RESAMPLES) -> list[Draws]:
    """Ours minus theirs in every case of the setting `stream` that both have."""
    streams = [line for line in lines if line.setting == "stream" and line.label in (ours, theirs)]
    groups = comparable(streams).values()
    return [case for group in groups for case in _group_differences(group, ours, theirs, resamples)]


def _group_differences(streams: list[Line], ours: str, theirs: str, resamples: int) -> list[Draws]:
    # Another set of rows gets draws of its own.
    seed = crc32(" ".join(sorted(streams[0].data_hashes.values())).encode())
    values, _ = drawn_scores(streams, resamples, seed)

    def with_draws(line: Line, update: int, column: str) -> NDArray[np.float64]:
        return np.concatenate([[score_of(line, update, column)], values[line.key, update, column]])

    by_case: dict[tuple[int, int], dict[str, Line]] = {}
    for line in streams:
        by_case.setdefault((line.seed, line.order), {})[line.label] = line
    differences = []
    for both in by_case.values():
        if len(both) == 2:
            one, other = (measures("stream", [both[label]], with_draws) for label in (ours, theirs))
            differences.append({name: one[name] - other[name] for name in MEASURES if name in one and name in other})
    return differences


def pooled(cases: Sequence[Draws], measure: str) -> tuple[float, float, float]:
    """Mean difference over cases, and the bounds of its interval."""
    # Each is a case of its own, whatever its seed and order are called in its file.
    drawn_B = over_cases("stream", {(number, 0): case[measure][1:] for number, case in enumerate(cases)}, seed=0)
    return fmean(case[measure][0] for case in cases), *interval(drawn_B)


def _cells(cases: Sequence[Draws]) -> list[str]:
    cells = []
    for measure in MEASURES:
        having = [case for case in cases if measure in case]
        if not having:  # nothing unseen, or one learning task
            cells.append("")
            continue
        value, low, high = pooled(having, measure)
        better = [(-1 if measure == FORGETTING else 1) * case[measure][0] for case in having]
        won, lost = sum(gap > 1e-12 for gap in better), sum(gap < -1e-12 for gap in better)
        mark = "" if low <= 0 <= high else "*"
        cells.append(f"{100 * value:+.1f}{mark} ({100 * low:.1f} to {100 * high:.1f}), {won}:{lost}")
    return cells


if __name__ == "__main__":
    sys.exit(main())
