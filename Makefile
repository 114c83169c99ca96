# make demo, test, lint and bench each set up .venv first. PYTHON chooses the interpreter it is made from.
# make bench takes under 8 minutes on two cores; make bench FULL=--full has more cases and more rounds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.installed
PEERS := loralib peft deepinv
PEERS_READY := $(VENV)/.peers
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
TEST_CXX_FILES := $(shell find tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test lint bench clean

demo: $(READY)
	$(BIN)/lorun demo

test: $(PEERS_READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES) $(TEST_CXX_FILES)

# What has been measured is reported even if a case fails.
bench: $(PEERS_READY)
	mkdir -p bench
	status=0; \
	$(BIN)/python -m pytest benchmarks $(FULL) --benchmark-json=bench/results.json || status=$$?; \
	$(BIN)/python -m benchmarks.report bench/results.json --out bench || status=$$?; \
	exit $$status

# Editable, so that edits to Python files need no new set-up. torch comes first and the build is not
# isolated, so that with every version of pip the torch that is compiled against is the one that runs.
$(READY): setup.py pyproject.toml constraints.txt $(wildcard build_backend/*.py) $(CXX_FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt setuptools ninja torch
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[test,dev]'
	touch $@

# One by one if they cannot be installed together: the table says which is missing, and why.
$(PEERS_READY): $(READY) pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt $(PEERS) || \
		for peer in $(PEERS); do $(PIP) install -c constraints.txt $$peer || true; done
	touch $@

clean:
	rm -rf $(VENV) build dist demo bench *.egg-info lorun_kernels/*.so lorun_kernels/_build.json
	rm -rf .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
