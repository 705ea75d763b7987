# Needs Python >= 3.11, pip and make. `make help` lists the targets.
VENV ?= .venv
PYTHON ?= $(shell .ci/find-python)
DEMO_ARGS ?=
TEST_ARGS ?=
RUN_ARGS ?=
COMPAT_ARGS ?=
BENCH_ARGS ?= --rounds 2 --scenario steady,throughput,requests,first-byte,idle,cancel
SUPPORTED = 3.11 3.12 3.13

BIN = $(VENV)/bin
# More workers than cores: many tests wait for processes and timeouts.
TESTS = $(PYTEST) -n 4 --dist worksteal --ignore=tests/drills
# Drills load the machine and measure delays: one on each core.
DRILLS = $(PYTEST) -n 2 --dist worksteal tests/drills
# Compiled modules are kept, whatever the environment says: every worker and the hundreds of processes that tests start
# would compile all of them again.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" pyproject.toml --group pyproject.toml:build

.PHONY: help demo run test check drills test-all bench compat lock clean
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

demo: $(VENV)/.runtime  ## a self-contained tour: no key, no network (DEMO_ARGS=--once ends after it)
	@$(BIN)/cgw demo $(DEMO_ARGS)

run: $(VENV)/.runtime  ## the gateway, configured by environment variables
	@$(BIN)/cgw serve $(RUN_ARGS)

test: $(VENV)/.dev  ## the tests but for the drills, in parallel (TEST_ARGS="-k relay" picks some)
	@$(TESTS) $(TEST_ARGS)

check: $(VENV)/.dev  ## format, lint, types, layers, short drills, then all other tests: what CI runs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layers.py
	@failed=; $(DRILLS) || failed=1; $(TESTS) || failed=1; test -z "$$failed"

drills: $(VENV)/.dev  ## faults and overload at full length, one after the other, with their figures; some minutes, on a quiet machine
	@CGW_LONG_DRILLS=1 $(BIN)/python -m pytest -q -s -n 0 tests/drills $(TEST_ARGS)

test-all:  ## the tests on every supported Python that is installed
	@missing=; \
	for version in $(SUPPORTED); do \
		if python=$$(.ci/find-python $$version 2>/dev/null); then \
			echo "== Python $$version: $$python"; \
			$(MAKE) --no-print-directory test VENV=.venv-$$version PYTHON="$$python" || exit 1; \
		else \
			missing="$$missing $$version"; \
		fi; \
	done; \
	if [ -n "$$missing" ]; then echo "not installed, so not tested: Python$$missing"; fi

bench: $(VENV)/.dev  ## cgw beside the peers that are installed, under 10 minutes (BENCH_ARGS="--profile full")
	@$(BIN)/python -m benchmarks run $(BENCH_ARGS)

compat: $(VENV)/.dev  ## real clients, installed from their registries into .compat, against cgw; writes docs/clients.md (COMPAT_ARGS="codex")
	@$(BIN)/python -m compat $(COMPAT_ARGS)

lock: $(VENV)/.dev  ## write both lock files anew from pyproject.toml (UPGRADE=--upgrade takes newer versions)
	@$(COMPILE) $(UPGRADE) --output-file requirements.lock
	@$(COMPILE) $(UPGRADE) --group pyproject.toml:dev --constraint requirements.lock --output-file requirements-dev.lock

clean:  ## remove the virtual environments and caches
	@rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist .compat

# --- the virtual environment -------------------------------------------------------------------------------------------
# Made without its own pip where the interpreter's pip can install into it: that saves seconds, and works where
# the system splits `ensurepip` off.
$(VENV)/bin/python:
	@test -n "$(PYTHON)"
	@echo "making $(VENV) with $(PYTHON)"
	@if "$(PYTHON)" -m pip --python "$(PYTHON)" --version >/dev/null 2>&1; then \
		"$(PYTHON)" -m venv --without-pip $(VENV); \
	else \
		"$(PYTHON)" -m venv $(VENV); \
	fi

define install
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then pip="$(BIN)/python -m pip"; \
	else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	$$pip install -qq --require-hashes --requirement $(1) && \
	$$pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@
endef

$(VENV)/.runtime: $(VENV)/bin/python requirements.lock pyproject.toml
	@echo "installing requirements.lock"
	$(call install,requirements.lock)

$(VENV)/.dev: $(VENV)/bin/python requirements-dev.lock pyproject.toml
	@echo "installing requirements-dev.lock"
	$(call install,requirements-dev.lock)
