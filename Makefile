# One command each; `make help` lists them. Everything runs from .venv, which
# is made at first use and brought up to date when pyproject.toml changes.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The command for `make run`, in a guest.
CMD ?= echo; uname -a; echo; grep -m1 'model name' /proc/cpuinfo; free -m; echo; echo 'A real Linux is running.'
# More for pytest: make test ARGS="-k kernel -x"
ARGS ?=
# How much longer than in `make test` the fuzzers run.
FUZZ ?= 50

.PHONY: help run shell test lint bench fuzz clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: $(VENV)/.runtime ## start a real Linux guest and show it working
	@$(BIN)/ringzero run -- sh -c "$(CMD)"

shell: $(VENV)/.runtime ## a shell in a guest (Ctrl-] q ends it)
	@$(BIN)/ringzero run

test: $(VENV)/.development ## run the tests
	@tools/test-packages
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.development ## check style and types
	$(BIN)/ruff check src tests
	$(BIN)/mypy

bench: $(VENV)/.development ## measure speed, beside QEMU
	@tools/test-packages
	$(BIN)/python -m pytest -m speed -s $(ARGS)

fuzz: $(VENV)/.development ## run the fuzzers for longer (FUZZ=50)
	RINGZERO_FUZZ=$(FUZZ) $(BIN)/python -m pytest --timeout 7200 -k "fuzz or hostile or damage or random or mutated or kernels" $(ARGS)

clean: ## remove what make has made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.runtime: pyproject.toml tools/make-venv
	@tools/make-venv $(VENV) "."
	@touch $@

$(VENV)/.development: pyproject.toml tools/make-venv
	@tools/make-venv $(VENV) ".[test,lint]"
	@touch $@ $(VENV)/.runtime
