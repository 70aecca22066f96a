# Two commands: `make demo` post-trains the embedded model, `make test` runs the tests. Both create the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a process: on small machines two threads of one process get in each other's way.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow lint clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/trl-progrpo train --config examples/configs/shapes_demo.yaml

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info
