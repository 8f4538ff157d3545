# One command each; `make help` lists them. Everything runs from .venv, which
# is made at first use and brought up to date when pyproject.toml changes.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The command for `make run`, in a guest.
CMD ?= echo; uname -a; echo; grep -m1 'model name' /proc/cpuinfo; free -m; echo; echo 'A real Linux is running.'
# More for pytest: make test ARGS="-k kernel -x"
ARGS ?=
# Saved translations serve the first machine of a process: their tests have one of their own.
ALONE := tests/engine/test_translations.py
# How often a failing test is run again. Zero, but for .ci/run: shared machines stall, and some
# tests wait for other processes. The summary names what was run again.
RERUNS ?= 0
# How much longer than in `make test` the fuzzers run.
FUZZ ?= 50
# Instructions that `make fuzz` compares with the host's CPU, on each run loop, as many of those
# beyond x86-64-v2, and their seed.
INSTANCES ?= 1000000
SEED ?= 0
FUZZ_CASES = --seconds 36000 --instances $(INSTANCES) --seed $(SEED)
# Seconds of mixed work in `make soak`; copies that are made there, in each of two ways, and how
# many seconds that may take. How far it came is kept: the next run goes on from there.
SOAK ?= 600
SOAK_COPIES ?= 100000
SOAK_SECONDS ?= 600
# Seconds of stress-ng in `make stress`, with each number of virtual CPUs, and rounds of each litmus test.
STRESS ?= 600
LITMUS ?= 1000000

# Both ends of the range of llvmlite in pyproject.toml.
LLVMLITE = 0.45.0 0.50.0
# Levels of x86-64 whose engines `make wheel` puts in.
TARGETS = x86-64-v2 x86-64-v3

.PHONY: help run shell test test-kvm test-llvmlite lint bench bench-kvm doors fuzz soak stress wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: $(VENV)/.runtime ## start a real Linux guest and show it working
	@$(BIN)/ringzero run -- sh -c "$(CMD)"

shell: $(VENV)/.runtime ## a shell in a guest (Ctrl-] q ends it)
	@$(BIN)/ringzero run

test: $(VENV)/.development ## run the tests
	@tools/test-packages
	$(BIN)/python -m pytest --reruns $(RERUNS) -q $(ALONE)
	$(BIN)/python -m pytest --reruns $(RERUNS) --ignore=$(ALONE) $(ARGS)

# Runs COMMAND in a guest with a real /dev/kvm; the guest images come from a copy of the cache.
RIG = $(BIN)/python tests/rigs/nested-kvm --timeout 1800 --out $(RIG_CACHE)
RIG_CACHE := $(CURDIR)/build/rig
RIG_IMAGES = @mkdir -p $(RIG_CACHE) && \
	RINGZERO_CACHE_DIR=$(RIG_CACHE) $(BIN)/python -c "from ringzero.image import micro; micro.ensure()"

test-kvm: $(VENV)/.development ## test the KVM engine, under QEMU's emulation of KVM hardware
	$(RIG_IMAGES)
	$(RIG) --pip llvmlite --pip pytest --pip pytest-timeout --pip hypothesis -- \
		env RINGZERO_CACHE_DIR=/out python3 -m pytest -m "kvm and not engine and not speed" tests/host tests/engine tests/vm $(ARGS)

bench-kvm: $(VENV)/.development ## measure the KVM engine beside QEMU's, in the same rig
	$(RIG_IMAGES)
	$(RIG) --deb qemu-system-x86 -- env RINGZERO_CACHE_DIR=/out python3 tests/rigs/bench_kvm.py

test-llvmlite: ## test the engine with the oldest and the newest llvmlite
	tools/test-llvmlite $(LLVMLITE)

wheel: $(VENV)/.runtime ## a wheel with the engine compiled in, in dist/
	@for target in $(TARGETS); do \
		$(BIN)/ringzero engine build --target $$target --output build/engines/$$target || exit 1; \
	done
	RINGZERO_WHEEL_ENGINES=$(CURDIR)/build/engines $(BIN)/python -m pip wheel -q --no-deps -w dist .
	@ls dist/*.whl

lint: $(VENV)/.development ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

bench: $(VENV)/.development ## measure speed beside the peers (ARGS are for each of bench/*.py)
	@tools/test-packages
	@for bench in bench/*.py; do \
		[ -e "$$bench" ] || continue; \
		echo "$$bench"; $(BIN)/python "$$bench" $(ARGS) || exit 1; \
	done

doors: $(VENV)/.development ## long proofs with other programs' own clients, which it installs (ARGS="-k vagrant")
	@tools/door-clients
	$(BIN)/python -m pytest -m doors --timeout 3600 -n0 -s $(ARGS)

fuzz: $(VENV)/.development ## run the fuzzers for longer (FUZZ=50 INSTANCES=1000000 SEED=0)
	RINGZERO_FUZZ=$(FUZZ) $(BIN)/python -m pytest --timeout 7200 -k "fuzz or hostile or damage or random or mutated or kernels or boot" $(ARGS)
	@# Both run loops at once, one core each; a seed names the cases, so that a run can be repeated.
	@for forms in "" extensions; do \
		name=$${forms:+extended-}; only=$${forms:+--only $$forms}; \
		$(BIN)/python -m tests.oracle.fuzz --engine $${name}interpreter $$only $(FUZZ_CASES) & first=$$!; \
		$(BIN)/python -m tests.oracle.fuzz --engine $${name}translator $$only $(FUZZ_CASES); second=$$?; \
		wait $$first && [ $$second = 0 ] || exit 1; \
	done

soak: $(VENV)/.development ## mixed work in a guest for SOAK=600 seconds; SOAK_COPIES=100000 copies, a command in each
	RINGZERO_SOAK=$(SOAK) $(BIN)/python -m pytest -s tests/boot/test_soak.py
	@mkdir -p build/soak
	@for form in objects processes; do \
		$(BIN)/python -m tests.vm.soak_copies $$form $(SOAK_COPIES) build/soak/$$form.json $(SOAK_SECONDS) || exit 1; \
	done

stress: $(VENV)/.development ## memory ordering LITMUS=1000000 times, stress-ng for STRESS=600 seconds on 1, 2 and 4 virtual CPUs
	LITMUS_ROUNDS=$(LITMUS) $(BIN)/python -m pytest --timeout 3600 -n0 tests/engine/test_smp.py -k "Ordering or Atomicity"
	RINGZERO_STRESS=$(STRESS) $(BIN)/python -m pytest -s -n0 tests/boot/test_stress.py

clean: ## remove what make has made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.runtime: pyproject.toml tools/make-venv
	@tools/make-venv $(VENV) "."
	@touch $@

$(VENV)/.development: pyproject.toml tools/make-venv
	@tools/make-venv $(VENV) ".[test,lint]"
	@touch $@ $(VENV)/.runtime
