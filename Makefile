# `make demo` trains a search agent from nothing; `make test` runs the tests. Both set up .venv first if needed.
SEED ?= 0
K ?= 64
ENGINE ?= transformers
OUT ?= runs/demo
PYTHON ?= python3
PROCESSES ?= 2
export PYTHON
# Quiet about newer releases of the type checker, and no look for one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

.DEFAULT_GOAL := help
.PHONY: help setup clean demo test test-fast lint bench-rollout bench-search

help:
	@echo "make demo           build the world, train, evaluate, show the result  (SEED=$(SEED) OUT=$(OUT))"
	@echo "                    ENGINE=$(ENGINE) writes the rollouts; or vllm, or vllm-colocate"
	@echo "make test           run the tests, slow ones first  (PROCESSES=$(PROCESSES))"
	@echo "make test-fast      run those that neither train nor start vLLM"
	@echo "make lint           check style and types"
	@echo "make bench-rollout  time rollouts on vLLM against TRL's tool loop and a lockstep one  (K=$(K) SEED=$(SEED))"
	@echo "make bench-search   time the retrieval server on 10^4 to 10^6 passages against a plain one"
	@echo "make setup          make .venv and install into it (the others do so if needed; PYTHON=$(PYTHON))"
	@echo "make clean          undo what setup added to .venv beside packages, and delete what builds and tests left"

setup: .venv/.installed

.venv/.installed: pyproject.toml tools/setup.sh tools/torchvision_shim.py
	@tools/setup.sh

# The packages stay: they are gigabytes. Without its stamp, the next target sets .venv up again, the shim included.
# `runs` stays as well: it is nobody's to delete but its owner's.
clean:
	@if [ -x .venv/bin/python ]; then .venv/bin/python tools/torchvision_shim.py --remove; fi
	rm -f .venv/.installed
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find benchmarks src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

demo: .venv/.installed
	.venv/bin/python -m mmsearch_trl.commands.main demo --seed $(SEED) --engine $(ENGINE) --out $(OUT)

# The tests' models are tiny: a second thread of a matrix product costs more than it saves. A file's tests stay in one
# process, which makes its fixtures once, and so do the tests on shared vLLM servers (`tests/conftest.py`); a process
# and what it starts take up to 4 GB.
test test-fast: export OMP_NUM_THREADS ?= 1
# Hundreds of processes read the sources, the assertions rewritten: they are compiled once, wherever nobody keeps that.
test test-fast: export PYTHONDONTWRITEBYTECODE =
test: .venv/.installed
	.venv/bin/python -m pytest --numprocesses $(PROCESSES) --dist loadgroup

test-fast: .venv/.installed
	.venv/bin/python -m pytest --numprocesses $(PROCESSES) --dist loadgroup -m "not slow"

lint: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/pyright

bench-rollout: .venv/.installed
	.venv/bin/python -m benchmarks.rollout --k $(K) --seed $(SEED)

bench-search: .venv/.installed
	.venv/bin/python -m benchmarks.search
