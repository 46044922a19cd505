# Everything goes into .venv; nothing outside the checkout is touched except Debian test tools (see `make help`).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first interpreter that starts and is at least 3.10 (a name on PATH may be a shim that starts nothing).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
# More for pip, such as --extra-index-url with PyTorch's CPU index; more for the demo; more for pytest.
PIP_ARGS ?=
ARGS ?=
PYTEST_ARGS ?=
# Processes that run the tests; those of devices in real time share one. 0: all in one, as --pdb wants it.
JOBS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test check bench test-py emulate clean

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18
	@echo
	@echo "  PYTHON=python3.12     which Python to use (3.10 or newer)"
	@echo "  ARGS='--seed 2'       more arguments for make demo and make bench"
	@echo "  PYTEST_ARGS='-k mba'  more arguments for pytest"
	@echo "  JOBS=0                run the tests in one process, for --pdb (make test takes 2)"
	@echo "  PIP_ARGS='...'        more arguments for pip"
	@echo "  NO_APT=1              install no Debian packages; tests that need them skip"

install: $(STAMP) ## install into .venv

$(STAMP): pyproject.toml constraints.txt
	@.ci/make-venv "$(VENV)" "$(PYTHON)"
	@echo "Installing into $(VENV): this takes a few minutes the first time."
	@$(BIN)/python -m pip install -qq $(PIP_ARGS) -c constraints.txt -e '.[demo,test,dev]'
	@touch $@

demo: $(STAMP) ## four devices learn together from real data over a real broker
	@$(BIN)/edge-coordinator demo $(ARGS)

test: $(STAMP) ## run the whole suite
	@.ci/apt-test-tools
	@PATH="$$PATH:/usr/sbin:/sbin" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

check: $(STAMP) ## format, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(STAMP) ## measure, each figure beside its limit; writes bench.json
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python tests/bench/run.py --out bench.json $(ARGS)

test-py: ## run the torch-free tests on Python 3.10 and 3.12, where they are found
	@PIP_ARGS="$(PIP_ARGS)" .ci/test-py 3.10 3.12 -- $(PYTEST_ARGS)

emulate: $(STAMP) ## an aarch64 system under qemu: import, doctor, a replayed minute (needs qemu-user-static, debootstrap)
	@.ci/emulate "$(BIN)" build/aarch64

clean: ## remove .venv, results and caches
	@rm -rf .venv .venv-3.* runs bench.json build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
