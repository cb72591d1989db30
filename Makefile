# Each target makes what it needs, the virtual environment included.
#
#   RUNTIME=docker    insist on Docker          RUNTIME=embedded   insist on native servers
#   ARGS="-k refund"  passed on to pytest       PYTHON=python3.13  for the virtual environment
#   PARALLEL=4                  files of tests that run at the same time
#   RUNS=3 WORKERS=8 TESTS=400  sizes of `make stress`

RUNTIME ?= auto
PYTHON ?= python3
ARGS ?=
PARALLEL ?= auto
RUNS ?= 3
WORKERS ?= 8
TESTS ?= 400

VENV := .venv
INSTALLED := $(VENV)/.installed
PYTEST := $(VENV)/bin/python -m pytest --warmstack-runtime=$(RUNTIME)
# The tests of one file stay in one process: they may share servers, which those of another never meet.
IN_PARALLEL := -n $(PARALLEL) --dist loadfile

# Where Docker is demanded, no test may be skipped for want of it.
ifeq ($(RUNTIME),docker)
export WARMSTACK_TEST_DOCKER = demanded
endif

.DEFAULT_GOAL := help
.PHONY: help test test-all test-unit test-integration stress images check typing format bench bench-docs pictures containers-clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 26

test-integration: $(INSTALLED) ## Start PostgreSQL and Redis, run the integration tests, remove both
	$(PYTEST) tests/integration $(ARGS)

test-unit: $(INSTALLED) ## Run the tests that need no server
	$(PYTEST) tests/unit $(ARGS)

test: $(INSTALLED) ## Run the tests, but for those that are slow and rarely affected
	$(PYTEST) $(IN_PARALLEL) -m "not slow" $(ARGS)

test-all: $(INSTALLED) ## Run all tests: every version, odd engines and networks, long properties
	$(PYTEST) $(IN_PARALLEL) $(ARGS)

check: $(INSTALLED) typing ## Lint, check types, and check that imports only go down
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

# Pyright would ask the network for a newer version of itself.
typing: $(INSTALLED) ## Check the types that users see, with mypy and pyright
	$(VENV)/bin/mypy tests/typing
	$(VENV)/bin/mypy --explicit-package-bases examples
	$(VENV)/bin/mypy benchmarks/*.py
	$(VENV)/bin/mypy docs/pictures/make.py
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV)/bin/pyright

format: $(INSTALLED) ## Format the code
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

stress: $(INSTALLED) ## Let many processes write at once; larger than in the tests
	STRESS_RUNS=$(RUNS) STRESS_WORKERS=$(WORKERS) STRESS_TESTS=$(TESTS) $(PYTEST) tests/servers/test_stress.py $(ARGS)

# The virtual environments of the other tools stay here.
COMPARE := $(VENV)/bin/python benchmarks/compare.py --cache $(VENV)/benchmarks

bench: $(INSTALLED) ## Measure the plugin beside other tools and wiring by hand; a template; a clone
	$(COMPARE) $(ARGS)
	$(VENV)/bin/python benchmarks/template.py
	$(VENV)/bin/python benchmarks/revision.py
	$(VENV)/bin/python benchmarks/clones.py
	$(VENV)/bin/python benchmarks/connections.py
	$(VENV)/bin/python benchmarks/application.py
	$(VENV)/bin/python benchmarks/bookings.py
	$(VENV)/bin/python benchmarks/hotspots.py
	$(VENV)/bin/python benchmarks/curves.py

bench-docs: $(INSTALLED) ## Measure again what docs/benchmarks.md shows, and write it there
	mkdir -p docs/benchmarks
	$(COMPARE) --rounds 7 --write docs/benchmarks.md --plots docs/benchmarks \
		--json docs/benchmarks/results.json $(ARGS)

pictures: $(INSTALLED) ## Run again what the pictures of the documentation show, and draw what has changed
	$(VENV)/bin/python docs/pictures/make.py

images: ## Build the stand-in images, for machines that reach no registry
	tests/images/build

containers-clean: $(INSTALLED) ## Remove the servers that --reuse-containers left behind
	$(VENV)/bin/warmstack clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[embedded]' --group dev
	touch $@
