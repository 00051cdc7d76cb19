# Two commands do everything on a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test pytest check bench test-hub install

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[demo,gguf,test]" --constraint constraints.txt
	touch $@

demo: install
	$(BIN)/visiontune demo

check: install
	$(BIN)/ruff format --check src tests bench examples
	$(BIN)/ruff check src tests bench examples
	$(BIN)/pyright
	$(BIN)/lint-imports

# Checks use what the tests leave of two cores.
test: install
	$(MAKE) --jobs 2 check pytest

pytest: install
	$(BIN)/pytest -n 2 --dist worksteal

bench: install
	for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

test-hub: install
	$(BIN)/pytest -m hub
