"""`recall compare` through the whole flow with a tiny model, and the scripts that feed it and show what it found."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from benchmark_scripts import script
from mlflow import MlflowClient
from project import DATA, SPECS, SPLITS
from typer.testing import CliRunner

from flows.cli import app
from flows.comparison_cases import Case, Options, all_cases, newest_orders, stream_orders
from recall.comparison_line import read_lines
from recall.errors import BadInput
from recall.load_settings import load_settings
from recall.prepare import main as prepare
from tasks import registry

ROOT = Path(__file__).parent.parent
WITH = ("--method", "average", "--method", "recall_moments")
needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes need two cores")
STREAM = ("--set", "stream.learning_tasks=[names, reviews]", "--set", "stream.unseen=[films]")


@pytest.fixture(scope="module")
def compared(new_project):
    """A project after a comparison in all three settings."""
    project = new_project("compared")
    project.results = project.folder / "comparison.jsonl"
    project.found = json.loads(project.recall("compare", "--json", *WITH, *STREAM).stdout)
    project.lines = read_lines(project.results)
    return project


def lines(project, setting, method, order=0):
    """Of one case; in `single` a line a learning task."""
    wanted = (setting, method, order)
    return [line for line in project.lines if (line.setting, line.label, line.order) == wanted]


@pytest.fixture(scope="module")
def results_page():
    return script("results_page")


def test_every_method_that_applies_is_scored_in_every_setting(compared):
    methods = {setting: {line.label for line in compared.lines if line.setting == setting}
               for setting in ("single", "independent", "stream")}  # fmt: skip
    assert methods == {
        "single": {"base", "expert", "average", "recall"},
        "independent": {"base", "expert names", "expert reviews", "average", "recall_moments", "recall"},
        "stream": {"base", "average", "recall_moments", "recall"},
    }
    assert [summary["setting"] for summary in compared.found["comparisons"]] == ["single", "independent", "stream"]
    assert compared.found["made"] == len(compared.lines) == 2 * 4 + 6 + 4
    assert not (compared.folder / "reports").exists(), "a comparison is no run of the stream"


def test_one_expert_is_merged_with_the_base_and_scored_on_everything(compared):
    names, reviews = lines(compared, "single", "recall")
    assert (names.learning_tasks, names.others, names.unseen) == (["names"], ["reviews"], ["films"])
    assert names.scores.keys() == reviews.scores.keys() == {"names", "reviews", "films"}
    (merge,) = names.merges
    assert merge.models == ["current", "names"]
    assert len(merge.similarities) == len(merge.weights) == len(merge.sigma) == len(merge.layers)
    assert names.matrix is None


def test_independent_experts_are_merged_once_with_the_base(compared):
    (line,) = lines(compared, "independent", "recall")
    (merge,) = line.merges
    assert merge.models == ["base", "names", "reviews"]
    (expert,) = lines(compared, "independent", "expert names")
    assert expert.scores == lines(compared, "single", "expert")[0].scores, "they are one and the same"
    assert lines(compared, "independent", "recall")[0].experts["names"] == expert.scores["names"]


def test_a_line_has_what_a_reader_needs(compared):
    (line,) = lines(compared, "stream", "recall")
    assert line.data_hashes["names"] == compared.dvc_hash("data/names")
    assert line.settings["weighting"]["temperature"] == 1
    assert "weighting" not in lines(compared, "stream", "average")[0].settings
    assert line.seconds.keys() == {"finetune", "cluster", "represent", "weigh", "merge", "evaluate"}
    assert line.machine["threads"] == 1
    assert [sorted(row) for row in line.rows] == [["names", "reviews"], ["films", "names", "reviews"]]
    assert len(line.rows[-1]["films"]) == SPLITS["test"][1]
    assert line.metrics == {"names": "chrf", "reviews": "accuracy", "films": "accuracy"}


def test_every_case_is_a_run_in_an_experiment_of_its_own_and_nothing_is_registered(compared):
    client = MlflowClient(f"sqlite:///{compared.folder / 'mlflow.db'}")
    assert client.search_registered_models() == []
    runs = client.search_runs([client.get_experiment_by_name("tiny.compare").experiment_id])
    assert len(runs) == 2 + 1 + 1
    (run,) = [run for run in runs if run.data.params["setting"] == "stream" and run.data.params["order"] == "0"]
    (line,) = lines(compared, "stream", "average")
    assert run.data.metrics["average/names"] == line.scores["names"]
    text = Path(client.download_artifacts(run.info.run_id, "lines.jsonl", str(compared.folder))).read_text()
    assert len(text.splitlines()) == 4


def test_a_second_comparison_makes_what_is_new_alone(compared, tmp_path):
    """Killed while it wrote a line, and asked for another order and setting: the experts are not made again."""
    project = shutil.copytree(compared.folder, tmp_path / "project", symlinks=True)
    before, compared.folder = compared.folder, project
    try:
        file = project / "comparison.jsonl"
        whole = file.read_text()
        file.write_text(whole + whole[:200])
        made = {kind: compared.artifacts(kind) for kind in ("experts", "samples", "merged")}
        more = ("--orders", "2", "--vary", "weighting.temperature=0.2", "--vary", "merging.shrink=0.5")
        more += ("--setting", "independent")
        done = compared.recall("compare", "--json", *WITH, *STREAM, *more)
        found = json.loads(done.stdout)
        assert "half a line at its end, of a killed run, was cut off" in done.stderr
        assert "6 of 8 methods are in comparison.jsonl already" in done.stderr
        assert (found["made"], found["found"]) == (2 + 8, 6)
        assert file.read_text().startswith(whole)
        new = read_lines(file)[-10:]
        varied, by_moments = "recall weighting.temperature=0.2", "recall_moments merging.shrink=0.5"
        assert [line.label for line in new if line.order == 0] == [varied, by_moments]
        other = {line.label: line for line in new if line.order == 1}
        assert other["recall"].merges[0].models == ["base", "reviews", "names"]
        assert other["average"].scores == lines(compared, "independent", "average")[0].scores
        assert other[varied].settings["weighting"]["temperature"] == 0.2
        assert other[by_moments].settings["merging"]["shrink"] == 0.5
        assert other["recall_moments"].settings["merging"]["shrink"] == 0.9
        assert [compared.artifacts(kind) for kind in ("experts", "samples")] == [made["experts"], made["samples"]]
        assert len(compared.artifacts("merged")) == len(made["merged"]) + 6, "with both temperatures, and both shrinks"
    finally:
        compared.folder = before


@needs_two_cores
def test_results_at_once_are_those_of_one_after_the_other_and_outlive_one_that_fails(compared, new_project):
    project = new_project("at-once")
    in_the_way = project.folder / ".store" / "fisher"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    asked = ("compare", "--json", "--jobs", "2", "--setting", "stream", *STREAM)
    asked += ("--method", "average", "--method", "ewc", "--seeds", "2")
    failed = project.recall(*asked, expect=1)
    (sentence,) = [line for line in failed.stderr.splitlines() if line.startswith("recall: ")]
    assert re.search(
        r"ewc, stream, seed \d, order 0 \(and 1 more\): .*\.log has what it said\); what was made is kept", sentence
    )
    (log,) = (project.folder / ".store" / "logs").glob("compare-ewc-stream-seed-0-order-0-*.log")
    assert "Traceback" in log.read_text()
    started = re.findall(r"^started: (.+), stream, seed (\d), order 0$", failed.stderr, re.M)
    assert sorted(started) == [(label, seed) for label in ("average", "base", "ewc", "recall") for seed in "01"]
    assert [seed for _, seed in started] == sorted(seed for _, seed in started), "case after case"
    assert re.search(r"^made: average, stream, seed \d+, order 0: [\d.]+ seen, [\d.]+ unseen$", failed.stderr, re.M)
    assert failed.stderr.count("made: ") == 6, "each once"
    every = read_lines(project.folder / "comparison.jsonl")
    made = {line.label: line for line in every if line.seed == 0}
    assert made.keys() == {line.label for line in every if line.seed == 1} == {"base", "average", "recall"}
    for label, line in made.items():
        (other,) = lines(compared, "stream", label)
        assert (line.key, line.rows) == (other.key, other.rows)
    in_the_way.unlink()
    found = json.loads(project.recall(*asked).stdout)
    assert (found["made"], found["found"]) == (2, 6)
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("tiny.compare").experiment_id])
    assert {run.data.params["seed"] for run in runs} == {"0", "1"}
    (run,) = [run for run in runs if run.data.params["seed"] == "0"]
    assert run.data.metrics["average/names"] == made["average"].scores["names"]


@needs_two_cores
def test_results_at_once_stop_where_none_can_be_made(new_project):
    project = new_project("none-at-once")
    in_the_way = project.folder / ".store" / "scores"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    asked = ("compare", "--jobs", "2", "--setting", "stream", *STREAM, "--method", "average", "--seeds", "4")
    failed = project.recall(*asked, expect=1)
    assert "base, stream, seed 0, order 0" in failed.stderr
    assert 2 <= failed.stderr.count("started: ") <= 4, "of twelve"


def test_a_process_whose_result_is_not_asked_for_any_more_says_so(compared):
    """As after an edit of params.yaml while a comparison goes on: by its names alone it would make another result."""
    given = {"config": "params.yaml", "profile": None, "overrides": [], "options": {"settings": ["stream"]}}
    only = ["recall", "stream, seed 0, order 0", "0" * 64]
    ended = compared.python("-m", "flows.compare_one", json.dumps(given | {"only": only}), os.getpid(), expect=2)
    assert "recall, stream, seed 0, order 0: settings or data have changed since the comparison began" in ended.stderr


@pytest.mark.slow
def test_the_stream_s_scores_are_those_of_a_run_and_share_its_models(compared):
    compared.recall("compare", "--setting", "stream", "--method", "sequential", *STREAM)
    compared.lines = read_lines(compared.results)
    made = {kind: compared.artifacts(kind) for kind in ("experts", "merged")}
    compared.run("--set", "baselines=[average, sequential]", *STREAM)
    result = json.loads((compared.folder / "reports" / "result.json").read_text())
    for method in ("recall", "average", "sequential"):
        (line,) = lines(compared, "stream", method)
        registered = result["methods"][method]["scores"]
        for row, other in zip(line.matrix.scores, registered, strict=True):
            assert [cell for cell in row if cell is not None] == [
                other[place] for place, cell in enumerate(row) if cell is not None
            ]
    assert {kind: compared.artifacts(kind) for kind in made} == made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "magic"], "--method magic is not known; take one of sequential, average"),
        (["--setting", "none"], "--setting none"),
        (["--split", "train"], "--split train"),
        (["--seeds", "0"], "--seeds 0"),
        (["--orders", "7"], "--orders 7: 3 learning tasks have 6 orders"),
        (["--orders", "3", "--seeds", "2", "--paired"], "--paired: 3 orders need as many seeds, and there are 2"),
        (["--method", "ewc", "--setting", "single"], "--method ewc has no meaning in --setting single"),
        (["--vary", "weighting.temperature"], "expected key=value,value"),
        (["--vary", "weighting.warmth=1"], "weighting.warmth is no setting; check its spelling"),
        (["--vary", "weighting.temperature=0"], "weighting.temperature"),
        (["--vary", "sampling.seed=1"], "--vary sampling.seed cannot be varied (that is what --seeds sets)"),
        (["--vary", "merging.scale=1"], "--vary merging.scale cannot be varied (RECALL reads update"),
        (["--vary", "update.merge=recall_moments"], "cannot be varied (--method recall_moments is the other merge)"),
        (["--vary", "sampling.clusters=3,99"], "fewer than sampling.clusters (99)"),
        *(
            (
                ["--vary", pair, "--setting", setting],
                f"--vary {pair} has no meaning in --setting {setting}; take it out",
            )
            for pair, setting in [
                ("update.pool=all", "single"),
                ("update.pool=experts", "single"),
                ("update.pool=all", "independent"),
                ("update.start_from=base", "independent"),
                ("merging.hold=1", "independent"),
                ("merging.shrink=0.5", "single"),
            ]
        ),
        (
            ["--vary", "merging.hold=0,10", "--set", "update.start_from=base"],
            "merging.hold holds what the current model",
        ),
        (["--set", "merging.hold=10", "--set", "update.start_from=base"], "merging.hold holds what the current model"),
        (["--jobs", "1000"], "--jobs 1000 of 1 threads each need 1000 cores"),
        (["--jobs", "2", "--set", "runner.kind=dask"], "both start processes; take one of the two"),
        (["--results", "data"], "data cannot be written; name another file with --results"),
    ],
)
def test_bad_input_is_one_sentence(compared, monkeypatch, arguments, words):
    monkeypatch.chdir(compared.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{compared.folder / 'mlflow.db'}")
    registry.client.cache_clear()
    before = compared.results.read_bytes()
    done = CliRunner().invoke(app, ["compare", *arguments])
    assert done.exit_code == 2, done.output
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("recall: ")]
    assert words in sentence
    assert "Traceback" not in done.output
    assert compared.results.read_bytes() == before


def test_orders_are_fixed_and_no_two_the_same():
    own = ("a", "b", "c", "d")
    assert stream_orders(own, 24)[:5] == stream_orders(own, 5)
    assert len(set(stream_orders(own, 24))) == 24
    assert stream_orders(own, 3)[0] == newest_orders(own, 3)[0] == own
    found = newest_orders(own, 9)
    assert sorted(order[-1] for order in found) == ["a", "b", "c", "d"], "as many as can be the newest"
    assert all(sorted(order) == list(own) for order in found)


def test_paired_takes_one_order_with_each_seed(compared):
    settings = load_settings(compared.folder / "params.yaml")
    options = Options(settings=["stream", "single"], seeds=3, orders=2, paired=True)
    cases = list(all_cases(settings, options))
    assert [(case.seed, case.order) for case in cases if case.setting == "stream"] == [(0, 0), (1, 1), (2, 0)]
    assert [case for case in cases if case.seed == 1] == [
        case
        for case in all_cases(settings, options.model_copy(update={"paired": False}))
        if case.seed == 1 and (case.setting, case.order) != ("stream", 0)
    ], "what has no order is in it all the same"
    at_once = all_cases(settings, options.model_copy(update={"settings": ["independent"], "seeds": 5, "orders": 5}))
    assert [(case.seed, case.order) for case in at_once] == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)], "3 can be newest"


def test_a_seed_reaches_training_sampling_and_merging(compared):
    settings = load_settings(compared.folder / "params.yaml")
    found = Case("independent", 3, 0, ("reviews", "names"), ()).settings(settings, "recall")
    assert (found.finetuning.seed, found.sampling.seed, found.merging.seed) == (3, 3, 3)
    assert (found.update.start_from, found.stream.learning_tasks) == ("base", ["reviews", "names"])


def test_without_the_base_in_the_pool_only_differences_are_still_taken_to_it(new_project, results_page, tmp_path):
    project = new_project("without-the-base")
    methods = ("--method", "average", "--method", "task_arithmetic", "--method", "lm_cocktail")
    project.recall("compare", *STREAM, *methods, "--set", "update.pool=experts")
    found = read_lines(project.folder / "comparison.jsonl")
    pools = {line.setting: [merge.models for merge in line.merges] for line in found if line.label == "recall"}
    assert pools["single"] == [["current", "reviews"]]
    assert pools["independent"] == [["names", "reviews"]]
    assert pools["stream"] == [["names"], ["names", "reviews"]]
    assert results_page.main([str(project.folder / "comparison.jsonl"), "--out", str(tmp_path)]) == 0
    assert "reviews, similarity" in (tmp_path / "tables.md").read_text()
    written = [json.loads(path.read_text()) for path in project.folder.glob(".store/weights/*/weights.json")]
    summed = [(one["models"], one["weights"][0]) for one in written if not one["similarities"]]
    assert (["names", "reviews"], [0.5, 0.5]) in summed, "the average's"
    assert (["base", "names", "reviews"], [-1, 1, 1]) in summed, "task arithmetic's"
    assert (["names"], [1]) in summed, "of a stream's first update"
    settings = ("--setting", "single", "--setting", "independent")
    project.recall("compare", *STREAM, *settings, *methods, "--vary", "update.pool=experts")
    added = read_lines(project.folder / "comparison.jsonl")[len(found) :]
    pools = {line.label: line.merges[-1].models for line in added if line.setting == "independent" and line.merges}
    assert pools["recall"] == pools["lm_cocktail"] == ["base", "names", "reviews"]
    assert pools["recall update.pool=experts"] == ["names", "reviews"]


def test_recall_is_the_paper_s_merge_whatever_a_run_merges_by(compared):
    settings = load_settings(compared.folder / "params.yaml", overrides=["update.merge=recall_moments"])
    for setting in ("stream", "independent"):
        assert Case(setting, 0, 0, ("names", "reviews"), ()).settings(settings, "recall").update.merge == "recall"


def test_tables_and_plots_come_out_of_the_results_the_same_every_time(compared, results_page, tmp_path):
    for out in ("one", "two"):
        results_page.write_page([compared.results], tmp_path / out)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"tables.md", *(f"comparison-{name}.svg" for name in ("single", "independent", "stream", "depth"))}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    text = (tmp_path / "one" / "tables.md").read_text()
    assert "| RECALL |" in text
    assert "| plain average |" in text
    told = text.partition("## Labels told apart, stream")[2].splitlines()
    assert re.fullmatch(r"\|  \| reviews \| films \|", told[4]), "classifications alone"
    assert any(re.fullmatch(r"\| RECALL( \| \d+\\\.\d \(\d+%\)){2} \|", row) for row in told)
    assert str(compared.folder) not in text
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(BadInput, match="has no results"):
        results_page.write_page([tmp_path / "empty.jsonl"], tmp_path)


@pytest.fixture
def real_data(tmp_path):
    """A folder like that of the small real data sets."""
    for name in ("names", "reviews", "films"):
        folder = tmp_path / "real" / f"real_{name}"
        folder.mkdir(parents=True)
        (folder / "card.json").write_text(json.dumps({"labels": None, **SPECS[name], "licence": "none", "notes": ""}))
        for split, (start, count) in SPLITS.items():
            rows = [row | {"references": [row["target"]]} for row in DATA[name](start, count)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "real"


def real_params(folder, *arguments, out):
    """Exit code of benchmarks/real_data.py."""
    names = ("--stream", "real_names", "real_reviews", "--unseen", "real_films")
    return script("real_data").main([*map(str, (folder, "--out", out)), *names, *map(str, arguments)])


def test_real_data_becomes_settings_that_prepare_reads(real_data, tmp_path, monkeypatch, capsys):
    out, params = tmp_path / "params-real.yaml", ("--params", ROOT / "params.yaml")
    assert real_params(real_data, "--rows", "train=20,validation=3,test=4", *params, out=out) == 0
    values = yaml.safe_load(out.read_text())
    assert values["stream"]["learning_tasks"] == ["real_names", "real_reviews"]
    assert values["base_model"] == yaml.safe_load((ROOT / "params.yaml").read_text())["base_model"]
    monkeypatch.chdir(tmp_path)
    assert prepare(["task", "real_reviews", "--config", str(out)]) == 0
    counts = {path.stem: len(path.read_text().splitlines()) for path in (tmp_path / "data").rglob("*.jsonl")}
    assert counts == {"train": 20, "validation": 3, "test": 4}
    assert real_params(real_data, "--unseen", "real_films", "film_reviews", *params, out=out) == 0
    with_ours = yaml.safe_load(out.read_text())
    assert with_ours["learning_tasks"]["film_reviews"]["source"]["builder"] == "film_reviews"
    assert with_ours["stream"]["unseen"] == ["real_films", "film_reviews"]
    assert real_params(tmp_path, *params, out=out) == 2
    assert "card.json is no data set's card" in capsys.readouterr().err
    assert real_params(real_data, "--rows", "many", *params, out=out) == 2
    assert "expected train=200" in capsys.readouterr().err


def test_real_data_that_makes_no_settings_leaves_the_settings_file_as_it_was(real_data, tmp_path, capsys):
    out, params, unknown = tmp_path / "params-real.yaml", ROOT / "params.yaml", tmp_path / "unknown.yaml"
    out.write_text("mine")
    unknown.write_text(params.read_text() + "finetunning: {}\n")

    def refused(*given):
        assert real_params(real_data, *given, out=out) == 2
        assert out.read_text() == "mine"
        (sentence,) = capsys.readouterr().err.strip().splitlines()
        return sentence

    assert "nosuch.yaml is no file; name the settings file" in refused("--params", tmp_path / "nosuch.yaml")
    assert "unknown.yaml: finetunning is no setting" in refused("--params", unknown)
    assert "see its cards, --stream and --unseen" in refused("--params", params, "--unseen", "real_names")
    card = real_data / "real_names" / "card.json"
    card.write_text(json.dumps({"kind": "poetry", "metric": "chrf"}))
    assert "learning_tasks.real_names.kind" in refused("--params", params)


@pytest.mark.slow
def test_a_comparison_takes_real_data_in(new_project, real_data):
    project = new_project("real")
    given = ("--params", project.folder / "params.yaml", "--rows", "train=20,validation=4,test=6")
    assert real_params(real_data, *given, out=project.folder / "params-real.yaml") == 0
    names = ("real_names", "real_reviews", "real_films")
    for name in names:
        project.python("-m", "recall.prepare", "task", name, "--config", "params-real.yaml")
    taken = [word for name in names for word in ("--take-in", name)]
    asked = ("compare", "--json", "--config", "params-real.yaml", "--setting", "single", "--split", "validation",
             "--method", "average")  # fmt: skip
    assert json.loads(project.recall(*asked, *taken).stdout)["made"] == 8
    assert json.loads(project.recall(*asked).stdout)["made"] == 0
    (first, *_) = read_lines(project.folder / "comparison.jsonl")
    assert {len(rows) for rows in first.rows[0].values()} == {4}, "the rows of the validation split"
