# Two commands: `make demo` post-trains the embedded model, `make test` runs the tests. Both create the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a process: on small machines two threads of one process get in each other's way.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow test-lowest lint docs dist clean

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

# The lowest version of every dependency, all together; torch as in constraints.txt.
LOWEST := build/lowest
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	sed -nE 's/^ +"([a-z0-9-]+)>=([0-9.]+)",$$/\1==\2/p' pyproject.toml | grep -v ^torch== > $(LOWEST)/lowest.txt
	grep ^torch== constraints.txt >> $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --requirement $(LOWEST)/lowest.txt pytest hypothesis tensorboard "setuptools>=77"
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(LOWEST)/bin/python -m pytest -q tests/families $(addprefix tests/test_,trainer.py config.py sampler.py adapters.py resume.py data.py cli.py cli_data.py cli_dry_run.py cli_score.py hub_card.py callbacks.py plots.py report.py rewards.py)

docs: $(VENV)/.ready
	$(BIN)/mkdocs build --strict

dist: $(VENV)/.ready
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

lint: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info
