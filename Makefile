# The same few verbs for every chore; continuous integration calls them too. Needed: Python >= 3.11, git, make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Those that need a minute at the most, and no other packages; bench/README.md lists the rest.
QUICK_BENCHES := start_time log_latency save_stall guest_backlog
READY  := $(VENV)/.ready

.PHONY: help demo test check bench docs

help:
	@echo "make demo    a training is killed and goes on (two minutes; it stays in ./milepost-demo)"
	@echo "make test    all tests;  make test ARGS='-k resume' for some"
	@echo "make check   format, lint, types, layers"
	@echo "make docs    every code block of README.md and docs/ is run"
	@echo "make bench   the tables of bench/, on this machine"

# Made again only when what it was made from has changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("milepost needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	@touch $@

demo: $(READY)
	$(BIN)/milepost demo

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(READY)
	$(BIN)/python -m pytest tests/docs $(ARGS)

bench: $(READY)
	@for name in $(QUICK_BENCHES); do echo "== $$name"; $(BIN)/python bench/$$name.py || exit 1; done
