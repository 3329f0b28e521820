# Two commands: `make demo` trains and measures the digits model, `make test` checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export TOKENIZERS_PARALLELISM := false
# What is imported is compiled then and kept, whatever the shell says: compiling every file of every package while
# installing takes longer than installing them, and compiling anew in every process longer still.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-all test-gpu lint check bench bench-gpu clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt \
	    -e '.[demo,dev,lora,audio,points,eeg,diffusers]'
	touch $(STAMP)

demo: setup
	$(BIN)/janus-plugins train configs/digits.yaml --out runs/digits \
	    $(if $(wildcard runs/digits/checkpoints/*),--resume)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tests' models are tiny: a second thread each would only make them wait for one another. Files of quick
# tests run in two processes instead; `make test WORKERS=0` runs all in one.
WORKERS ?= 2
test test-all: export OMP_NUM_THREADS := 1

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-all: lint
	$(BIN)/python -m pytest -m 'not gpu'

test-gpu:
	$(PYTHON) -m pytest -m gpu

check: test

bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.generation
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.products
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.halves
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.training
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.data --rounds 2
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.ranks
	$(BIN)/python -m benchmarks.plugins
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.parallel
	test ! -d runs/digits/model || OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality runs/digits

bench-gpu:
	$(PYTHON) -m benchmarks.gpu
	$(PYTHON) -m benchmarks.layers
	$(PYTHON) -m benchmarks.gpu_training

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
