"""Tables and plots out of the results files of `recall compare`, the same every time.

    python benchmarks/results_page.py comparison.jsonl [MORE.jsonl ...] --out docs/results

writes `tables.md` and SVG plots: by setting every method's averages with their intervals; RECALL's similarity to the
newest model and the newest model's weight by depth; and for each setting that was varied what it changed.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams |= {"svg.hashsalt": "recall", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
                 "axes.spines.right": False}  # fmt: skip
import matplotlib.pyplot as plt  # noqa: E402
import yaml  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from results_lines import comparable, lines_of  # noqa: E402

from recall.comparison import Estimate, MethodSummary, SettingSummary, compare_lines  # noqa: E402
from recall.comparison_line import SETTINGS, Line  # noqa: E402
from recall.comparison_measures import SEEN, UNSEEN  # noqa: E402
from recall.comparison_table import cell, columns, difference_cell, label_of, sentence, title  # noqa: E402
from recall.errors import BadInput  # noqa: E402
from recall.markdown import code, escaped  # noqa: E402
from recall.results import LabelBias  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--also", action="append", default=[], metavar="METHOD", help="set this against the others too")
    given = parser.parse_args(arguments)
    try:
        write_page(given.files, given.out, given.also)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def write_page(files: list[Path], out: Path, also: Sequence[str] = ()) -> None:
    """Write `tables.md` and the plots that it shows into folder `out`."""
    found = [(file, lines_of(file)) for file in files]
    out.mkdir(parents=True, exist_ok=True)
    words = " ".join([*(file.name for file in files), *(f"--also {method}" for method in also)])
    text = [f"<!-- Written by `python benchmarks/results_page.py {words}`; edit nothing here. -->"]
    for file, lines in found:
        text += ["", f"# {escaped(file.name)}", "", *about(lines)]
        groups = comparable(lines)
        for name, group in sorted(groups.items(), key=lambda named: SETTINGS.index(named[1][0].setting)):
            summary, *others = (compare_lines(group, ours=method)[0] for method in ("recall", *also))
            text += section(summary, f"{file.stem}-{name}", out, others)
        text += [*labels_told_apart(groups), *by_depth(groups, f"{file.stem}-depth", out)]
    (out / "tables.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def about(lines: list[Line]) -> list[str]:
    """What the lines were made with, and on."""
    machines = {f"{line.machine.get('cpu_model')}, {line.machine.get('threads')} threads, "
                f"{line.machine.get('device')}, torch {line.machine.get('torch')}" for line in lines}  # fmt: skip
    commits = {f"{str(line.code_commit)[:12]}{'' if line.code_clean else ' with changes'}" for line in lines}
    bases = {line.base_model for line in lines}
    told = {"base model": bases, "code": commits, "made on": machines}
    return [f"{len(lines)} results; " + "; ".join(f"{what}: {_listed(found)}" for what, found in told.items()) + "."]


def section(summary: SettingSummary, name: str, out: Path, also: Sequence[SettingSummary]) -> list[str]:
    """One setting: its sentence, its tables and its plots."""
    rows = ", ".join(f"{task} {count}" for task, count in summary.rows.items())
    if not summary.methods:
        return ["", f"## {escaped(title(summary))}", "", escaped(sentence(summary))]
    plain = [method for method in summary.methods if "=" not in method.label] or summary.methods
    save(averages(summary, plain), out / f"{name}.svg")
    text = ["", f"## {escaped(title(summary))}", "", escaped(sentence(summary)), ""]
    text += [f"Points (100 x the score) ± half of the 95% interval; rows: {escaped(rows)}.", ""]
    text += _table(
        ["", "cases", *(f"{column} {summary.metrics.get(column, '')}".strip() for column in columns(summary))],
        [[label_of(one.label), str(one.cases), *(cell(one.measures.get(column)) for column in columns(summary))]
         for one in summary.methods],
    )  # fmt: skip
    text += differences(summary)
    for other in also:
        if other.ours not in {one.label for one in other.methods}:
            continue
        text += ["", escaped(sentence(other)), *differences(other)]
    text += ["", f"![{summary.setting}]({name}.svg)"]
    for key, variants in groupby(varied(summary), key=lambda one: key_of(one.label)):
        file = f"{name}-{key.replace('.', '-')}"
        save(sensitivity(summary, key, list(variants)), out / f"{file}.svg")
        text += ["", f"![{code(key)}]({file}.svg)"]
    return text


def differences(summary: SettingSummary) -> list[str]:
    """A method set against each other one."""
    compared = [column for column in columns(summary) if any(column in one.against for one in summary.methods)]
    said = "minus each method, with the interval, * where that leaves out zero, and cases won and lost:"
    rows = [[label_of(one.label), *(difference_cell(one.against.get(column)) for column in compared)]
            for one in summary.methods if one.against]  # fmt: skip
    if not rows:
        return []
    return ["", f"{escaped(label_of(summary.ours))} {said}", "", *_table(["", *compared], rows)]


def averages(summary: SettingSummary, methods: list[MethodSummary]) -> Figure:
    """A dot and an interval a method; RECALL's stands out."""
    shown = [name for name in (SEEN, UNSEEN) if any(name in method.measures for method in methods)]
    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 0.8 + 0.26 * len(methods)), sharey=True,
                                squeeze=False, layout="constrained")  # fmt: skip
    for axis, name in zip(axes[0], shown, strict=True):
        for height, method in enumerate(reversed(methods)):
            if name in method.measures:
                colour = "tab:red" if method.label == "recall" else "tab:gray"
                _dot(axis, method.measures[name], height, colour, across=True)
        axis.set_yticks(range(len(methods)), [label_of(method.label) for method in reversed(methods)])
        axis.set_xlabel(f"{name}, points")
        axis.grid(axis="x", alpha=0.3)
    return figure


def sensitivity(summary: SettingSummary, key: str, variants: list[MethodSummary]) -> Figure:
    """Averages over seen and unseen by the value of one setting; the line is the method as the settings have it."""
    values = [yaml.safe_load(one.label.partition("=")[2]) for one in variants]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        variants = [one for _, one in sorted(zip(values, variants, strict=True), key=lambda pair: pair[0])]
    method = variants[0].label.partition(" ")[0]
    (plain,) = [one for one in summary.methods if one.label == method] or [variants[0]]
    figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    for name, colour in ((SEEN, "tab:red"), (UNSEEN, "tab:blue")):
        if name in plain.measures:
            for place, one in enumerate(variants):
                _dot(axis, one.measures[name], place, colour)
            points = [100 * one.measures[name].value for one in variants]
            axis.plot(range(len(variants)), points, color=colour, label=name)
            axis.axhline(100 * plain.measures[name].value, color=colour, linestyle=":", linewidth=1)
    axis.set_xticks(range(len(variants)), [one.label.partition("=")[2] for one in variants])
    axis.set_xlabel(f"{key} ({summary.setting}, {summary.split}; dotted: as it was set)")
    axis.set_ylabel("points")
    axis.legend(frameon=False)
    return figure


def labels_told_apart(groups: dict[str, list[Line]]) -> list[str]:
    """For each classification the area under the ROC curve and how often the commonest answer is given, by method."""
    text: list[str] = []
    for group, lines in groups.items():
        own = [line for line in lines if line.label_bias]
        if not own:
            continue
        names = list(dict.fromkeys(name for line in own for name in line.label_bias))
        rows = []
        for label in dict.fromkeys(line.label for line in own):
            found = [line.label_bias for line in own if line.label == label]
            rows.append(
                [label_of(label), *(_told_apart([one[name] for one in found if name in one]) for name in names)]
            )
        text += ["", f"## Labels told apart, {group}", ""]
        text += ["100 x the area under the ROC curve, mean over cases (the share of rows given the commonest answer)."]
        text += ["", *_table(["", *names], rows)]
    return text


def _told_apart(found: list[LabelBias]) -> str:
    areas = [bias.auc for bias in found if bias.auc is not None]
    return f"{100 * fmean(areas):.1f} ({100 * fmean(bias.given for bias in found):.0f}%)" if areas else ""


def by_depth(groups: dict[str, list[Line]], name: str, out: Path) -> list[str]:
    """Similarity to the newest model, and the newest model's weight over an equal share, layer by layer."""
    drawn_of = {
        group: [merge for line in lines if line.label == "recall" for merge in line.merges if merge.compares_models]
        for group, lines in groups.items()
    }
    if not any(drawn_of.values()):
        return []
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for group, found in drawn_of.items():
        most = max((len(merge.layers) for merge in found), default=0)
        merges = [merge for merge in found if len(merge.layers) == most]
        alike = [[value for merge in merges for value in merge.similarities[layer][:-1]] for layer in range(most)]
        tilt = [[merge.weights[layer][-1] * len(merge.models) for merge in merges] for layer in range(most)]
        for axis, layers in zip(axes, (alike, tilt), strict=True):
            (drawn,) = axis.plot(range(most), [fmean(values) for values in layers], label=group)
            low, high = [min(values) for values in layers], [max(values) for values in layers]
            axis.fill_between(range(most), low, high, alpha=0.15, color=drawn.get_color())
    for axis, what in zip(axes, ("similarity to the newest model", "weight of the newest, over 1/K"), strict=True):
        axis.set_xlabel("layer (0: embeddings); band: least to most")
        axis.set_ylabel(what)
    axes[1].axhline(1, color="tab:gray", linestyle=":", linewidth=1)
    axes[0].legend(frameon=False)
    save(figure, out / f"{name}.svg")
    text = ["", "## By depth", "", f"![similarity and weight by depth]({name}.svg)"]
    for group, lines in groups.items():
        first = next((line for line in lines if line.label == "recall"), None)
        text += layer_table(group, first) if first else []
    return text


def layer_table(group: str, line: Line) -> list[str]:
    """Of every merge of a case at some layers: the newest model's weight, and how alike the nearest other one is."""
    merges = [merge for merge in line.merges if merge.compares_models]
    if not merges:
        return []
    count = len(merges[0].layers)
    shown = sorted({0, 1, min(3, count - 1), *range(5, count, 5), *range(max(count - 3, 0), count)})
    rows = []
    for merge in merges:
        rows.append([f"{merge.models[-1]}, similarity", *(f"{max(merge.similarities[at][:-1]):.2f}" for at in shown)])
        rows.append(["weight", *(f"{merge.weights[at][-1]:.2f}" for at in shown)])
    case = f"{group}, seed {line.seed}, order {line.order}; layers"
    return ["", f"{case}:", "", *_table(["", *map(str, shown)], rows)]


def varied(summary: SettingSummary) -> list[MethodSummary]:
    """Methods with a setting changed, those of one setting beside each other."""
    found = [method for method in summary.methods if "=" in method.label]
    keys = list(dict.fromkeys(key_of(method.label) for method in found))
    return sorted(found, key=lambda method: keys.index(key_of(method.label)))


def key_of(label: str) -> str:
    """The setting that a variant changes."""
    return label.partition(" ")[2].partition("=")[0]


def save(figure: Figure, path: Path) -> None:
    """Without the date, so that the same results give the same file."""
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _dot(axis: plt.Axes, estimate: Estimate, place: int, colour: str, across: bool = False) -> None:
    value = 100 * estimate.value
    spread = [[value - 100 * estimate.low], [100 * estimate.high - value]]
    at, error = ((value, place), "xerr") if across else ((place, value), "yerr")
    axis.errorbar(*at, **{error: spread}, fmt="o", color=colour, markersize=4, capsize=2)


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(escaped(text) if text != "---" else text for text in line) + " |" for line in lines]


def _listed(found: Iterable[str]) -> str:
    return escaped(", ".join(sorted(found)))


if __name__ == "__main__":
    sys.exit(main())
