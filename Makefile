# make serve   set up, and serve the demo model (or MODEL=folder) at http://localhost:8000/v1
# make test    set up, and run the whole test suite (JOBS=2: in two processes)
# make gpu-check   what the project claims of GPUs, measured on the one that is here (12 minutes; CONTRIBUTING.md)
# make lint    ruff (lint and format), mypy, and which folder may import which
#
# EXTRA=cuda or EXTRA=cpu overrides what is found out about the machine; PYTHON names the interpreter.

PYTHON ?= python3
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
MODEL ?=
ARGS ?=
JOBS ?= 1
BIN := .venv/bin

.PHONY: setup serve test gpu-check gpu-check-wheels lint format clean

setup: .venv/installed-$(EXTRA)

.venv/installed-$(EXTRA): pyproject.toml
	@echo "setting up .venv for $(EXTRA) (a few minutes and about $(if $(filter cpu,$(EXTRA)),5,12) GB, once)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python .ci/install.py $(EXTRA)
	@touch $@

serve: setup
	@$(BIN)/qwen-vqa serve $(MODEL) $(ARGS)

test: setup
	@$(BIN)/python -m pytest $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --dist loadscope) $(ARGS)

# In .venv where it is there, else in whatever Python has torch: a borrowed machine may have no more, and no network.
gpu-check:
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check $(ARGS)

gpu-check-wheels:
	@$(PYTHON) benchmarks/gpu_check/wheels.py $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy -p qwen_vqa
	@$(BIN)/lint-imports --no-cache --no-logo

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info
