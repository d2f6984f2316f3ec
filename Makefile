# Everything a developer or CI does here is one of these targets; `make` alone lists them.
# Needed first: Python 3.11 or newer with its venv module, and make.  Nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# Override on the command line: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= $(shell scripts/find-python)
VENV ?= .venv
JOBS ?= 2
NODES ?= 8
CLUSTER ?= 1000

BIN := $(VENV)/bin
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
PIP := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
PACKAGES := mesh gossip state transport chaos

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- set-up -----------------------------------------------------------------------------------------------------

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer with venv found; set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing peermesh into $(VENV)"
	$(PIP) -c constraints.txt -e .
	touch $@

$(DEV): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing peermesh and its development tools into $(VENV)"
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $(RUN) $@

.PHONY: setup
setup: $(DEV) ## Make the virtual environment with all development tools

.PHONY: constraints
constraints: ## Renew constraints.txt with the newest versions that pyproject.toml allows
	@scripts/renew-constraints "$(PYTHON)"

# --- use --------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(RUN) ## Start real nodes on this machine, send, broadcast, kill one, show what the others saw
	@$(BIN)/mesh demo --nodes $(NODES)

# --- test -------------------------------------------------------------------------------------------------------

.PHONY: test
test: $(DEV) ## All tests in random order, and that each core has 100 % branch coverage
	@rm -f $(VENV)/.coverage*
	export COVERAGE_FILE="$(CURDIR)/$(VENV)/.coverage"
	# Whole networks apart: the tracer would make them four times slower, and a core's branches are for its own tests.
	$(BIN)/pytest -n $(JOBS) --dist loadgroup -m "(network or slow) and not large" $(ARGS)
	$(BIN)/pytest -n $(JOBS) --dist loadgroup -m "not network and not slow and not large" --cov --cov-report= $(ARGS)
	$(BIN)/coverage json --quiet -o $(VENV)/coverage.json
	$(BIN)/python scripts/check_core_coverage.py $(VENV)/coverage.json

.PHONY: test-fast
test-fast: $(DEV) ## All tests that take no more than a moment and need no privileges; no coverage
	@$(BIN)/pytest -n $(JOBS) --dist loadgroup -m "not slow and not large and not system" $(ARGS)

.PHONY: test-large
test-large: $(DEV) ## The simulations of a thousand nodes that `make test` leaves out; `make sim-sweep` has more
	@$(BIN)/pytest -n $(JOBS) -m large --timeout 600 $(ARGS)

.PHONY: test-all-pythons
test-all-pythons: ## make test on Python 3.11, 3.12 and 3.13, each in an environment of its own
	@for version in 3.11 3.12 3.13; do
		python=$$(scripts/find-python $$version)
		test -n "$$python" || { echo "make: no Python $$version found" >&2; exit 1; }
		echo "== Python $$version ($$python)"
		$(MAKE) test PYTHON="$$python" VENV=$(VENV)-$$version
	done

.PHONY: fuzz fuzz-short
fuzz: $(DEV) ## Mutate frames and session traffic for ten minutes
	@$(BIN)/python tests/fuzzing.py --seconds 600
fuzz-short: $(DEV) ## The same for fifteen seconds
	@$(BIN)/python tests/fuzzing.py --seconds 15

.PHONY: churn churn-short
churn: $(RUN) ## Twenty nodes join, leave and are killed at random for ten minutes
	@$(BIN)/python -m chaos.churn --nodes 20 --duration 600
churn-short: $(RUN) ## The same with eight nodes for thirty seconds
	@$(BIN)/python -m chaos.churn --nodes 8 --duration 30

.PHONY: durable-chaos durable-chaos-short
durable-chaos: $(RUN) ## Kill the sender or the receiver of durable messages a hundred times
	@$(BIN)/python -m chaos.durable --kills 100
durable-chaos-short: $(RUN) ## The same ten times
	@$(BIN)/python -m chaos.durable --kills 10

.PHONY: sim sim-sweep sim-short
sim: $(RUN) ## Every simulated scenario with a hundred nodes and a fresh seed
	@$(BIN)/mesh sim --scenario all --bars
sim-sweep: $(RUN) ## Every simulated scenario at full size, mostly 1,000 nodes, with twenty fresh seeds; takes a day
	@$(BIN)/mesh sim --scenario all --full --seeds 20 --bars --wall-limit 3600
# A failure names its seed: mesh sim --scenario NAME --nodes 12 --warm 2 --seed SEED repeats it.
sim-short: $(RUN) ## Every simulated scenario with a few nodes and two fresh seeds
	@$(BIN)/mesh sim --scenario all --nodes 12 --seeds 2 --warm 2

.PHONY: raft-sim raft-sim-short
raft-sim: $(DEV) ## Ten thousand simulated Raft groups with crashes, torn disks, faults and changes of members
	@PYTHONPATH=. $(BIN)/python tests/raft_sim.py --seeds 10000 $(ARGS)
raft-sim-short: $(DEV) ## The same with three hundred
	@PYTHONPATH=. $(BIN)/python tests/raft_sim.py --seeds 300 $(ARGS)

.PHONY: bench
bench: $(DEV) ## Measure throughput and latency, beside nats-server where it is installed; prints JSON
	@$(BIN)/python benchmarks/run.py $(ARGS)

.PHONY: cluster-short
cluster-short: $(DEV) ## Forty real nodes, and twelve beside as many of Serf, end to end
	@$(BIN)/pytest -q -m large tests/benchmarks/test_cluster.py

.PHONY: cluster beside-serf
cluster: $(DEV) ## A thousand real nodes on this machine, and what they see; prints JSON (CLUSTER=100 for less)
	@$(BIN)/python benchmarks/cluster.py --nodes $(CLUSTER) $(ARGS)
beside-serf: $(DEV) ## 256 of our nodes and as many serf agents, one after the other; prints JSON
	@$(BIN)/python benchmarks/beside_serf.py $(ARGS)

# --- read -------------------------------------------------------------------------------------------------------

.PHONY: lint
lint: $(DEV) ## Style: ruff check and format
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(DEV) ## Let ruff mend and format what it can
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: $(DEV) ## mypy strict over everything, pyright over what users see
	@$(BIN)/mypy
	# pyright is a JavaScript program; where there is no node, take it from the package index like everything else.
	command -v node > /dev/null || $(PIP) -c constraints.txt 'pyright[nodejs]'
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: imports
imports: $(DEV) ## Layers and cores: import-linter
	@$(BIN)/lint-imports

.PHONY: deps
deps: $(DEV) ## Declared and used dependencies agree: deptry
	@$(BIN)/deptry .

.PHONY: tidy
tidy: $(DEV) ## House rules
	@$(BIN)/pytest tests/tidy -p no:randomly $(ARGS)

.PHONY: readme
readme: $(DEV) ## Run the commands that README.md and docs/ show
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/check_docs.py

.PHONY: examples
examples: $(DEV) ## Run each example as a process
	@$(BIN)/python scripts/run_examples.py

# --- ship -------------------------------------------------------------------------------------------------------

.PHONY: wheel
wheel: $(DEV) ## Build sdist and wheel into dist/
	@rm -rf dist
	log=$$($(BIN)/python -m build --no-isolation --outdir dist . 2>&1) || { echo "$$log" >&2; exit 1; }
	ls -1 dist

.PHONY: wheel-check
wheel-check: wheel ## Install the wheel in an empty environment, outside the checkout, and run the demo from it
	@scripts/check-wheel "$(BIN)/python" dist/*.whl

.PHONY: ci
ci: ## Everything that .ci/run does
	@.ci/run

.PHONY: clean
clean: ## Remove environments, caches and build output
	@rm -rf $(VENV) $(VENV)-3.* dist build *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
