# Everything runs in .venv, made on first use from python3, where that is 3.10 to 3.12, else from python3.12, 3.11 or 3.10.
# PYTHON=python3.12 chooses another (after make clean, where there is a .venv); EXTRA="--input my.jsonl --lm openai/gpt-4o-mini" goes to the run.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell sh .ci/find-python)

.DEFAULT_GOAL := help
.PHONY: help run test check bench chaos clean

help:
	@echo "make run    set up, and classify the sample messages without key or server"
	@echo "make test   set up, and run the linters, the type checker and the tests"
	@echo "make chaos  real processes, real kills, full disks, damaged state (about 7 minutes)"
	@echo "make bench  what a row costs, beside bare HTTP loops and (PEERS=venv) DSPy"

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "No Python 3.10, 3.11 or 3.12 was found; name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "$(PYTHON) is no Python 3.10, 3.11 or 3.12; name another with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@

run: $(VENV)/.run
	$(BIN)/dspy-stream run flows/banking.py $(EXTRA)

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

# Two workers; what measures runs by itself.
test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not measures"
	$(BIN)/python -m pytest -m measures $$(grep -rl 'mark\.measures' tests)

# Three at a time on two cores, as they mostly wait; one by one, so that the longest can begin first.
chaos: $(VENV)/.test
	$(BIN)/python -m pytest --chaos -n 3 --maxschedchunk 1 tests/chaos tests/state/test_damage.py

bench: $(VENV)/.test
	$(BIN)/python -m tests.bench $(BENCH)

clean:
	rm -rf $(VENV) .dspy_stream out build dist
