# Everything runs in .venv, which the first target that needs it makes. `make` alone lists the targets.
SHELL  := /bin/bash
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BENCH  := $(VENV)/.ready-bench
# the first Python that is new enough
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && { command -v $$p; break; }; done)
# with no C compiler on PATH, the ziglang wheel brings one
ZIG    := $(shell command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || command -v clang >/dev/null 2>&1 || echo ,zig)
# a machine with a GPU may reach no registry: its own Python is used where there is no .venv
GPU_PYTHON = $(or $(wildcard $(BIN)/python),$(PYTHON))
EXTRAS := dev,onednn,openblas,cuda-compile$(ZIG)

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench bench-search gpu-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## compile resnet50 in 60 s, show the choices, the error and the speed
	$(BIN)/python -m benchmarks.demo

test: $(READY) ## all tests that need no GPU
	$(BIN)/python -m pytest

lint: $(READY) ## ruff
	$(BIN)/ruff check .

types: $(READY) ## mypy --strict on an installed copy
	rm -rf build/types build/lib
	$(BIN)/python -m pip install --quiet --no-deps --target build/types .
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p wpk

bench: $(BENCH) ## the nine zoo models against ONNX Runtime and OpenVINO (about half an hour)
	$(BIN)/python -m benchmarks.models --models all --against onnxruntime,openvino --budget 120s --threads 2 \
	  --json benchmarks/results/models.json

bench-search: $(BENCH) ## all figures about the search, and a table of what was wanted (about an hour and a half)
	$(BIN)/python -m pip install --quiet --editable '.[fleet,learn]'
	$(BIN)/python -m benchmarks.search_goals

gpu-check: ## on a machine with an NVIDIA GPU: tests, tuning, peers; figures go to OUT (see benchmarks/gpu_check.py)
	@$(GPU_PYTHON) -c 'import wpk.search' 2>/dev/null || $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .
	$(GPU_PYTHON) -m benchmarks.gpu_check --out $(or $(OUT),build/gpu) \
	  $(if $(RESUME),--resume $(RESUME)) $(if $(TIME),--time $(TIME)) $(if $(ONLY),--only $(ONLY))

clean: ## remove what the targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "wpk needs Python 3.11 or newer on PATH" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

$(BENCH): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@
