# make demo     set up .venv and run the main job on the embedded data: train, validate, predict
# make check    set up .venv with the development tools; lint, type-check and run the tests that are not slow
# make test     the same with every test, and with the oldest version of Ultralytics
# make upstream test what we lean on in Ultralytics with its oldest version; part of make test
# make upstream-tests  run Ultralytics' own tests of detection with our class and command in the place of theirs; fetches
#               them first. About half an hour on two cores
# make bench    set up as for test and run what is timed
# make docs     build the documentation as a site, in build/site; part of make test
# make pictures make the documentation's pictures again: trains four small models first
# make readme   make the documentation's tables again, of options and of results
# make audit    look for known vulnerabilities in the installed versions (asks pypi.org)
# make clean    remove everything that make, the tests and the builds have made here

PYTHON ?= python3
# As many tests at a time as there are cores, up to eight; PYTEST_ARGS= runs them one by one.
PYTEST_ARGS ?= -n auto --maxprocesses 8 --dist worksteal
BENCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

# `make upstream` tests with the oldest version that pyproject.toml allows, or ULTRALYTICS=8.4.180, say.
ULTRALYTICS ?= $(shell sed -n 's/.*"ultralytics>=\([0-9.]*\),.*/\1/p' pyproject.toml)
UPSTREAM := build/ultralytics-$(ULTRALYTICS)

.PHONY: demo lint check test upstream upstream-tests bench docs pictures readme audit clean

demo: $(VENV)/.installed
	$(BIN)/mlc-yolo demo

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test: lint
	$(MAKE) upstream docs
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# What we lean on in Ultralytics, an old checkpoint, and the tasks beside detection, with another version put before .venv's.
UPSTREAM_TASKS := $(wildcard tests/*/test_task_*.py) tests/heads/test_iou_aware_tasks.py

upstream: $(VENV)/.installed-dev $(UPSTREAM)/.installed
	PYTHONPATH="$(CURDIR)/$(UPSTREAM)" $(BIN)/python -c \
	  'from importlib.metadata import version as v; assert v("ultralytics") == "$(ULTRALYTICS)", v("ultralytics")'
	PYTHONPATH="$(CURDIR)/$(UPSTREAM)" $(BIN)/python -m pytest -q $(PYTEST_ARGS) tests/test_upstream*.py \
	  tests/checkpoints/test_checkpoint_versions.py $(UPSTREAM_TASKS)

$(UPSTREAM)/.installed: $(VENV)/.installed-dev
	rm -rf $(UPSTREAM)
	$(BIN)/python -m pip install --quiet --no-deps --target $(UPSTREAM) ultralytics==$(ULTRALYTICS)
	touch $@

# UPSTREAM_TESTS_ARGS="tests/test_engine.py -k resume", say, runs fewer.
upstream-tests: $(VENV)/.installed-dev
	$(BIN)/python tests/upstream_suite/run.py $(UPSTREAM_TESTS_ARGS)

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/benchmarks/bench_*.py $(BENCH_ARGS)

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

pictures: $(VENV)/.installed-dev
	$(BIN)/python docs/pictures/make.py

readme: $(VENV)/.installed
	$(BIN)/python -m mlc_yolo.paper.readme

# Versions without what follows a plus, such as torch's +cpu: the database knows those. What it does not know fails.
audit: $(VENV)/.installed-dev build/audit/.installed
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > build/audit/requirements.txt
	build/audit/bin/pip-audit --strict --no-deps --disable-pip -r build/audit/requirements.txt

build/audit/.installed:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	touch $@

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
