# make demo   set up .venv and run the main job on the embedded data: train, validate, predict
# make test   set up .venv with the development tools; lint, type-check and test
# make bench  set up as for test and run what is timed
# make clean  remove everything that make, the tests and the builds have made here

PYTHON ?= python3
PYTEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench clean

demo: $(VENV)/.installed
	$(BIN)/mlc-yolo demo

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/benchmarks/bench_*.py $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find mlc_yolo tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps make a second run start at once. The development set-up contains the other one.
$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install -e . -c constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install -e ".[dev]" -c constraints.txt
	touch $(VENV)/.installed $@

# A .venv that is already there and has pip is kept; one whose making was interrupted is made again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "mlc-yolo needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1 || echo not one)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "pip>=22" # editable installs from pyproject.toml; nothing to fetch where it is
	touch $@
