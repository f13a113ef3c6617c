# `make help` lists what there is to do.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
DEMO_FLAGS ?=
JOBS ?= 2
MINUTES ?= 10
CARDS ?= 300
ONLY ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all break dist docs docs-serve gallery lint format bench bench-peers bench-gpu

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "advect needs Python 3.11 or newer; run: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch setuptools
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

setup: $(VENV)/.ready  ## make .venv with everything in it

demo: setup  ## train on real digits, sample, and write a report: minutes on two CPU cores
	$(BIN)/advect train digits --run-dir $(RUN) $(DEMO_FLAGS)
	$(BIN)/advect sample $(RUN) --num-samples 100 --cond label=cycle --output-dir $(RUN)/generated
	$(BIN)/advect report $(RUN)
	@echo
	@echo "new digits:  $(RUN)/generated/samples.png"
	@echo "report:      $(RUN)/report.html"

test: setup  ## the test suite
	$(BIN)/python -m pytest -n $(JOBS)

test-all: setup  ## the test suite with its slow tests
	$(BIN)/python -m pytest -n $(JOBS) -m ''

break: setup  ## try to break every command and file format for MINUTES, and CARDS cards of each modality
	PYTHONPATH=tests $(BIN)/python -m faults.breaker --minutes $(MINUTES) --jobs $(JOBS)
	PYTHONPATH=tests $(BIN)/python -m faults.card_cases --cases $(CARDS)

dist: setup  ## build source and wheel in dist/, and try the wheel alone in a fresh environment
	rm -rf dist build
	$(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	PYTHON=$(PYTHON) .ci/smoke dist/advect-*.whl

.venv-docs/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > .venv-docs/docs.txt
	.venv-docs/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -r .venv-docs/docs.txt
	@touch $@

docs: .venv-docs/.ready  ## build the documentation site in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

docs-serve: .venv-docs/.ready  ## show the site on loopback, built anew when a page changes
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs serve

gallery: setup  ## run the gallery's scripts (ONLY="moons digits": these), for the next make docs
	$(BIN)/python docs/site/gallery.py $(ONLY)

lint: setup  ## style, format, types and import contracts; then the source's size, as information
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	-@$(BIN)/python bench/structure.py

format: setup  ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv-peers/.ready: bench/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -qq -c constraints.txt torch numpy scipy scikit-learn POT absl-py
	.venv-peers/bin/python -m pip install -qq --no-deps -r bench/peers/requirements.txt
	@touch $@

bench-peers: .venv-peers/.ready  ## make .venv-peers with the libraries that benchmarks compare with

bench: setup bench-peers  ## measure, and print the tables of bench/RESULTS.md
	$(BIN)/python bench/toy_loop.py
	$(BIN)/python bench/train_step.py
	$(BIN)/python bench/engine.py
	$(BIN)/python bench/import_time.py
	$(BIN)/python bench/solver_overhead.py
	$(BIN)/python bench/coupling.py
	$(BIN)/python bench/compare_numbers.py

bench-gpu: setup  ## check and measure on a GPU in 12 minutes; without one, try that at tiny sizes
	PYTHON=$(BIN)/python bench/gpu.sh
