# The habits: demo test check bench docs. Each sets up what it needs; the second time that takes seconds.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 /usr/bin/python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
UV := UV_FIND_LINKS="$${PIP_FIND_LINKS-}" UV_NO_PROGRESS=1 $(BIN)/uv
FRAMEWORK ?= keras
JOBS ?= 2
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo bench soak test test-core test-frameworks check lint types docs setup clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "fitwire needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up .venv (a minute the first time) ..."
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(UV) pip install --quiet -p $(BIN)/python -e '.[dev]'
	@touch $@

demo: .venv/.ready
	@$(BIN)/fitwire demo --framework $(FRAMEWORK)

test: test-frameworks test-core

# Everything, once, on the main interpreter; the Keras door again on each other backend.
test-frameworks: .venv/.ready
	$(BIN)/python -m pytest -q -n $(JOBS) tests
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q tests/test_keras.py tests/test_keras_steering.py
	KERAS_BACKEND=torch $(BIN)/python -m pytest -q tests/test_keras.py tests/test_keras_steering.py

# The core on every other Python that is installed.
test-core: .venv/.ready
	@for v in 3.12 3.13; do \
	  py=; for p in python$$v "$$HOME"/.pyenv/versions/$$v.*/bin/python; do "$$p" -c '' 2>/dev/null && py=$$p && break; done; \
	  if [ -z "$$py" ]; then echo "Python $$v is not installed: skipped"; continue; fi; \
	  echo "core tests on Python $$v"; \
	  if [ ! -e .venv-$$v/.ready ] || [ pyproject.toml -nt .venv-$$v/.ready ]; then \
	    "$$py" -m venv --without-pip --clear .venv-$$v && $(UV) pip install --quiet -p .venv-$$v/bin/python -e '.[test]' && touch .venv-$$v/.ready || exit 1; \
	  fi; \
	  .venv-$$v/bin/python -m pytest -q -n $(JOBS) -m 'not framework and not faults' tests || exit 1; \
	done

# Everything that can go wrong, at full length and with three seeds, and half an hour of it for 50 ranks; figures as JSON.
soak: .venv/.ready
	FITWIRE_SOAK=1 $(BIN)/python -m pytest -q tests/faults

check: lint types test

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.ready
	$(BIN)/pyright

# What it costs, beside its peers, in an environment of their own; QUICK=1 only tries that all of it runs.
bench: .venv-bench/.ready
	.venv-bench/bin/python benchmarks/run.py $(if $(QUICK),--quick)

.venv-bench/.ready: pyproject.toml | .venv/.ready
	@echo "setting up .venv-bench ..."
	@test -x .venv-bench/bin/python || "$(PYTHON)" -m venv --without-pip .venv-bench
	@$(UV) pip install --quiet -p .venv-bench/bin/python -e '.[bench]' || \
	  { echo "the peers cannot be installed: fitwire is measured without them"; \
	    $(UV) pip install --quiet -p .venv-bench/bin/python -e .; }
	@touch $@

docs: .venv/.ready
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-* site dist build
