# Everything runs from .venv, which is built from requirements.lock.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MACHINE ?= epyc1-naples-2s
REPORT := out/placement-$(MACHINE).html
PYTEST := $(BIN)/python -m pytest -q

.PHONY: env demo test test-kernels lint lab bench lock clean
.DEFAULT_GOAL := env

env: .venv/.installed

# The stamp is older than the lock or pyproject.toml when either has changed: then packages are brought up to date.
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The main job: where does every page of a guest land on a real host? Ends with the report's path and a table.
demo: env
	$(BIN)/workbench report notebooks/01_placement.ipynb -p machine $(MACHINE) -o $(REPORT)

# Kernels are tested compiled, as plain Python (which also shows their coverage) and with every index checked.
test: env lint test-kernels
	$(PYTEST) tests/e2e
	$(PYTEST) -n 2 --dist loadfile tests --ignore=tests/kernels --ignore=tests/e2e

test-kernels: env
	$(PYTEST) -n 2 --dist loadfile tests/kernels
	NUMBA_DISABLE_JIT=1 $(PYTEST) -n 2 --dist loadfile --cov=kernels --cov-report=term-missing:skip-covered tests/kernels
	NUMBA_BOUNDSCHECK=1 $(PYTEST) -n 2 --dist loadfile tests/kernels

lint: env
	$(BIN)/ruff check .

lab: env
	$(BIN)/jupyter lab --notebook-dir=notebooks

bench: env
	$(BIN)/python tests/bench/run.py

# Compile the lock file anew from pyproject.toml, with a resolver in a throw-away environment.
lock:
	directory=$$(mktemp -d) && $(PYTHON) -m venv $$directory && $$directory/bin/pip install --quiet uv && \
	$$directory/bin/uv pip compile pyproject.toml --extra test --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --quiet -o requirements.lock; rm -rf $$directory

clean:
	rm -rf .venv build out *.egg-info
