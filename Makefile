# Everything runs in .venv, made on first use. PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# Three processes, also on two cores, as some tests wait (for Ray, for time to pass); each test module
# in one, so that its fixtures are made once; in alphabetical order, which begins with what takes long.
# Bytecode is kept, whatever the machine's default: tests start some hundred processes.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo recipe test torture check bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(STAMP)

demo: $(STAMP)  ## make a sample, convert it, prove it, load it
	$(BIN)/python -m tests.demo

recipe: $(STAMP)  ## the steps of docs/ci/checkpoint.yml, on a sample
	$(BIN)/python -m tests.recipe

test: $(STAMP)
	$(PYTEST)

torture: $(STAMP)  ## every fault of docs/reliability.md, in full; as root, with gcc, e2fsprogs and strace
	$(BIN)/python -m tests.faults

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info demo bench-data
