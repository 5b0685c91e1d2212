# make run: set-up from nothing, then the stream. make test: set-up from nothing, then the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready
PYTEST := python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
export PATH := $(BIN):$(PATH)

# What docs/results.md and docs/more-results.md have tables and plots of.
RESULTS := default-all default-more-rows default-even default-stream default-stream-gpu default-stream-rank-64 default-single real-three real-independent real-five \
	real-five-independent real-five-stream real-five-cpu real-five-gpu real-five-gpu-first real-six real-six-all default-gemma \
	default-independent default-independent-response default-independent-experts default-independent-with-and-without-base real-stream validation-independent \
	validation-independent-5-samples validation-independent-200-samples validation-independent-response validation-independent-three-seeds validation-stream validation-stream-rank-64 validation-stream-three-seeds

# Of these, the cases in which merges by moments are set against each other method, all files together.
POOLED := default-all default-more-rows default-stream default-stream-gpu real-five-gpu real-five-cpu real-six real-six-all
# Those in which old rows, which none of these keeps, are replayed beside RegMean; no case twice on one kind of machine.
REPLAYED := default-all default-stream real-five-gpu real-five-stream

.PHONY: setup data run results test test-examples test-slow test-nightly test-server chaos lint types check clean

run: data
	recall run

test: setup
	$(PYTEST) -m "not slow and not nightly and not server and not example"

# Every file of examples/, run small.
test-examples: setup
	$(PYTEST) -m example -rs

# The whole flow killed in every stage, grown, moved to another machine, and with every baseline.
test-slow: setup
	$(PYTEST) -m "slow and not server"

# Faults, clusters, several processes, races, an audit that retrains: too long for CI's 25 minutes.
test-nightly: setup
	$(PYTEST) -m nightly

# PostgreSQL, S3, MLflow and Prefect, started once for all of them (docs/production.md); without PostgreSQL they skip.
test-server: setup
	python -m pytest -m "server and not nightly" -rs

# Every fault that we can make, each followed by the same command again; `make chaos FAULTS="disk kill"` takes some.
chaos: setup
	python -m chaos $(FAULTS)

# The tables and plots of docs/results.md, out of its lines.
results: setup
	OMP_NUM_THREADS=1 python benchmarks/results_page.py $(RESULTS:%=docs/results/%.jsonl) \
		--also recall_moments --also "recall_moments merging.hold=10" --out docs/results
	python benchmarks/pooled_cases.py $(POOLED:%=docs/results/%.jsonl) --ours "recall_moments merging.hold=10" \
		--theirs regmean --out docs/results/pooled.md
	python benchmarks/pooled_cases.py $(POOLED:%=docs/results/%.jsonl) --ours "recall_moments merging.hold=10" \
		--out docs/results/pooled-held.md
	python benchmarks/pooled_cases.py $(REPLAYED:%=docs/results/%.jsonl) --ours replay --theirs regmean \
		--out docs/results/pooled-replay.md
	python benchmarks/pooled_cases.py $(POOLED:%=docs/results/%.jsonl) --ours recall_moments \
		--out docs/results/pooled-moments.md

check: setup lint types
	lint-imports

setup: $(READY)

# torch first and alone: pinned by constraints.txt, it is satisfied for everything that asks for it afterwards.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --constraint constraints.txt torch
	python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

data: setup
	python -m tasks.data_versions
	dvc repro
	dvc push --quiet

lint: setup
	ruff format --check .
	ruff check .

types: setup
	mypy

clean:
	rm -rf $(VENV)
