# Everything runs from .venv, which holds exactly what requirements.lock says.
VENV ?= .venv
BIN := $(VENV)/bin
# The first Python at hand that the lock serves; the classifiers in pyproject.toml and the README name the same.
SERVED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
  $$python -c '$(SERVED)' 2>/dev/null && command -v $$python && break; done)
PIP ?=
PIP_OPTIONS ?=
# yes: bytecode of the sources and machine code of the kernels are made with the environment, so that the first answer
# comes fast. Where PYTHONDONTWRITEBYTECODE is set, every process would otherwise compile every source anew.
WARM ?= yes
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PIP_OPTIONS)
MACHINE ?= epyc1-naples-2s
REPORT := out/placement-$(MACHINE).html
PYTEST := $(BIN)/python -m pytest -q

.PHONY: env demo test quick fuzz mutants test-kernels test-browser lint docs lab bench lock clean
.DEFAULT_GOAL := env

env: $(VENV)/.installed

# Nothing is resolved: pip takes the wheels that the lock pins, whatever was released since, then checks the set.
# An environment of another lock, or one left half-made, is begun anew, so that nothing of it stays.
# PIP=pip==23.0.1 installs with that pip instead of the one that comes with Python.
$(VENV)/.installed: requirements.lock pyproject.toml
	@'$(PYTHON)' -c '$(SERVED)' 2>/dev/null || { echo "Python 3.11, 3.12, 3.13 or 3.14 is needed" >&2; exit 2; }
	cmp -s requirements.lock $(VENV)/requirements.lock || { \
	  $(PYTHON) -m venv --clear $(VENV) $(if $(PIP),&& $(INSTALL) '$(PIP)') && \
	  $(INSTALL) --require-hashes --only-binary :all: -r requirements.lock && \
	  cp requirements.lock $(VENV)/requirements.lock; }
	$(INSTALL) --no-build-isolation -e .
	$(BIN)/python -m pip check
	$(if $(filter yes,$(WARM)),$(BIN)/python -m compileall -q workbench kernels && $(BIN)/python -m workbench.kernels.warm)
	touch $@

# The main job: where does every page of a guest land on a real host? Ends with the report's path and a table.
demo: env
	$(BIN)/workbench report notebooks/01_placement.ipynb -p machine $(MACHINE) -o $(REPORT)

# Kernels are tested compiled, as plain Python (which also shows their coverage) and with every index checked.
# The documentation is made beside the browser's tests: each waits for one thing at a time. The rest waits for programs
# that it starts, so that three at once fill two cores.
test: env lint test-kernels
	+$(MAKE) --no-print-directory -j 2 --output-sync docs test-browser
	WORKBENCH_SITE=$(CURDIR)/out/docs $(PYTEST) -n 3 --dist worksteal tests --ignore=tests/kernels --ignore=tests/e2e

test-browser: env
	$(PYTEST) tests/e2e

# The documentation with the outputs of its notebooks; a warning is an error. `workbench docs` shows it without them.
docs: env
	$(BIN)/workbench docs --notebooks --no-browser --force -o out/docs

# Between two commits: lint, and the tests that start no browser, no notebook, no guest and build no wheel.
QUICK := tests/project tests/topology tests/cost tests/tracking
quick: lint
	$(PYTEST) -n 2 --dist loadfile -m 'not slow' $(QUICK) --ignore=tests/project/test_wheel.py

# The fuzz targets for long, with every index of the kernels checked: FUZZ_ROUNDS times FUZZ_EXAMPLES inputs a target, so
# that each has its turn soon. It ends with the first round in which something failed, which is kept in .hypothesis and
# comes first in the next run, or by Ctrl-C; each round says of every target how many inputs were answered and refused.
FUZZ_EXAMPLES ?= 1000
FUZZ_ROUNDS ?= 100
fuzz: env
	for round in $$(seq $(FUZZ_ROUNDS)); do \
	  FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) NUMBA_BOUNDSCHECK=1 $(PYTEST) -n 2 tests/fuzz || exit; done

# Faults put into the code one by one, each of which a test must find; CI tries another part each day.
MUTANTS ?= 1/1
mutants: env
	$(BIN)/python tests/mutants/run.py --part $(MUTANTS)

test-kernels: env
	$(PYTEST) -n 2 --dist worksteal tests/kernels
	NUMBA_DISABLE_JIT=1 $(PYTEST) -n 2 --dist worksteal --cov=kernels --cov-report=term-missing:skip-covered tests/kernels
	NUMBA_BOUNDSCHECK=1 $(PYTEST) -n 2 --dist worksteal tests/kernels

# What is read without being run. mypy wants packages where their names say, and some of ours lie beside workbench/.
lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	rm -rf build/types && mkdir -p build/types/workbench
	ln -s $(CURDIR)/workbench/* $(CURDIR)/kernels build/types/workbench/
	cd build/types && $(abspath $(BIN))/python -m mypy --config-file ../../pyproject.toml --cache-dir ../mypy

lab: env
	$(BIN)/jupyter lab --notebook-dir=notebooks

bench: env
	$(BIN)/python tests/bench/run.py

# The lock anew from pyproject.toml, with a resolver in a throw-away environment: one set of versions for every Python
# that it serves. Pins that still fit stay; `make lock UPGRADE=--upgrade` takes the newest. The last step looks whether
# each pin has a wheel for each Python, on both kinds of processor.
UPGRADE ?=
lock:
	directory=$$(mktemp -d) && trap "rm -rf $$directory" EXIT && $(PYTHON) -m venv $$directory && \
	$$directory/bin/pip install --quiet --disable-pip-version-check uv && \
	$$directory/bin/uv pip compile pyproject.toml --extra test --universal --python-version 3.11 \
	  --fork-strategy fewest --no-strip-extras --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet \
	  $(UPGRADE) -o requirements.lock && \
	for python in 3.11 3.12 3.13 3.14; do for processor in x86_64 aarch64; do \
	  $$directory/bin/uv pip install --quiet --dry-run --target $$directory/none --python-version $$python \
	    --python-platform $$processor-unknown-linux-gnu --no-deps --no-build --require-hashes -r requirements.lock || \
	    exit; \
	done; done

clean:
	rm -rf .venv build out *.egg-info
