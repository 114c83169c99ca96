# make demo, test, lint and bench each set up .venv first. PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.installed
CXX_FILES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: demo test lint bench clean

demo: $(READY)
	$(BIN)/lorun demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES) $(wildcard tests/*/*.cpp tests/*/*.h)

bench: $(READY)
	$(BIN)/python -m pytest benchmarks

# Editable, so that edits to Python files need no new set-up. torch comes first and the build is not
# isolated, so that what is compiled and what runs are one torch with every version of pip.
$(READY): setup.py pyproject.toml constraints.txt $(wildcard build_backend/*.py) $(CXX_FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt setuptools ninja torch
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo *.egg-info lorun_kernels/*.so lorun_kernels/_build.json
	rm -rf .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
