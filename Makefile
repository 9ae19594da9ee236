# One short list of commands, the same here and in CI. They install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# Test and lint tools are as large as the product, so only the targets that need them install them.
DEVELOPER := $(VENV)/.installed-dev
# In the order of their folders, so that the long end-to-end files do not run last and alone. They wait now and then,
# so four at a time keep two cores busy. Bytecode is kept, because hundreds of processes would each compile the package.
export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder -q
# Python compiles what is imported when it is first imported; most of what is installed never is.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: servers help demo own up test test-fast test-integration test-citus test-kubernetes test-image test-dagster test-focus test-clickhouse test-nightly verify coverage check docs screenshots bench format clean
help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 26

demo: $(READY) ## Load a sample fleet, compute everything through Dagster, print the result
	@$(BIN)/capacity demo

own: $(READY) ## Measure the embedded server itself, compute the day and write a report; data in .capacity-own, separate from the demo
	@CAPACITY_HOME=$${CAPACITY_HOME:-.capacity-own} $(BIN)/capacity collect --own

up: $(READY) ## Serve the pages and Dagster (UI and daemon) on this machine until Ctrl-C
	@$(BIN)/capacity up

# A separate target, so that `make -j` runs it in parallel with the installation of packages.
servers:
	@tests/install_servers.sh

test: $(DEVELOPER) servers ## Run the tests on real servers that they start, without the long ones of test-nightly
	@$(PYTEST)

test-fast: $(DEVELOPER) ## Run the tests that need no server, in seconds
	@$(BIN)/pytest -n 2 -q tests/unit

test-integration: $(DEVELOPER) servers ## Run the unit and integration tests; CAPACITY_TEST_POSTGRES_BIN names another PostgreSQL
	@$(PYTEST) tests/unit tests/integration

test-citus: $(DEVELOPER) servers ## Run the integration tests on distributed tables; CAPACITY_TEST_CITUS_BIN names a PostgreSQL with Citus
	@$(PYTEST) tests/integration

test-kubernetes: $(DEVELOPER) ## Render and check deploy/kubernetes, and execute a run; CAPACITY_TEST_DAGSTER_CHART names the chart's folder
	@$(INSTALL) --quiet -e '.[kubernetes]' kubernetes-validate
	@$(BIN)/pytest -q tests/integration/test_kubernetes.py

test-focus: $(DEVELOPER) ## Check the charges of bills with the official validator of FOCUS, in build/focus, some 420 MB
	@$(PYTHON) -m venv build/focus
	@build/focus/bin/pip install --disable-pip-version-check --quiet focus-validator==1.0.0 'multimethod<1.12' 'setuptools<81'
	@$(BIN)/pytest -q tests/integration/test_focus.py

test-clickhouse: $(DEVELOPER) ## Run the statements for newer ClickHouse servers on chDB, in build/chdb, some 560 MB
	@$(PYTHON) -m venv build/chdb
	@build/chdb/bin/pip install --disable-pip-version-check --quiet --no-deps chdb-core==26.9.0
	@$(BIN)/pytest -q tests/integration/test_collection_clickhouse_newer.py

verify: $(DEVELOPER) ## Measure databases of known size in the vendors' containers (Docker), and compare; SERVERS=oracle-23
	@PYTHON="$(CURDIR)/$(BIN)/python" deploy/verify/run $(SERVERS)

test-image: $(DEVELOPER) ## Run the steps of the image's Dockerfile in a clean Debian, and every role in it; needs root and debootstrap
	@CAPACITY_TEST_IMAGE=build/image-base $(BIN)/pytest -q tests/e2e/test_image.py

test-dagster: DAGSTER ?= 1.13
test-dagster: ## Run the graph's tests on the newest release of another Dagster, if there is one; DAGSTER=1.14
	@$(MAKE) --no-print-directory VENV=build/dagster-$(DAGSTER) build/dagster-$(DAGSTER)/.installed-dev
	@# The bounds of pyproject.toml are ignored. Without bounds, pip takes a years-old dagster-postgres; 0.29 belongs to 1.13.
	@if build/dagster-$(DAGSTER)/bin/pip download --quiet --no-deps --dest build/dagster 'dagster==$(DAGSTER).*'; then \
		build/dagster-$(DAGSTER)/bin/pip install --quiet --upgrade 'dagster==$(DAGSTER).*' dagster-webserver \
			$(foreach library,postgres celery,'dagster-$(library)==0.$(shell expr 16 + $(subst 1.,,$(DAGSTER))).*') && \
		tests/install_servers.sh && build/dagster-$(DAGSTER)/bin/pytest -n 4 --dist loadfile -q \
			$$(grep -rlE '^(import|from) dagster' tests/unit tests/integration --include='test_*.py'); \
	else echo "There is no Dagster $(DAGSTER) yet."; fi

coverage: $(DEVELOPER) servers ## Measure branch coverage of the unit and integration tests; fails below the minimum in pyproject.toml
	@$(PYTEST) --cov --cov-report=term:skip-covered tests/unit tests/integration

test-nightly: $(DEVELOPER) servers ## Run all tests with many generated histories and many kills; takes hours
	@CAPACITY_TEST_PROFILE=nightly $(PYTEST)

check: $(DEVELOPER) ## Lint and type-check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(DEVELOPER) ## Write the generated parts of the reference, and build the site in build/site
	@$(INSTALL) --quiet -e '.[docs]'
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/site_pages.py
	@$(BIN)/zensical build --strict

screenshots: $(DEVELOPER) servers ## Take screenshots of the demo: for docs/images, and of every page on four screens in build/screenshots
	@$(BIN)/python docs/screenshots.py

bench: $(DEVELOPER) ## Compare with hand-written statements and with row-at-a-time computation; BENCH='--size 1000x20x184'
	@$(BIN)/python -m benchmarks $(BENCH)

format: $(DEVELOPER) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment and caches; the data under .capacity and .capacity-own stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "This Python cannot create virtual environments (on Debian: apt-get install python3-venv)."; exit 1; }
	@# The pip that comes with Python 3.11 takes twice the processor time of this one. It works too.
	@$(INSTALL) --quiet --upgrade pip 2> /dev/null || true
	@touch $@

# A line per package, as progress; a pipe would hide a failure.
define INSTALL_WITH
	@echo "Installing packages into $(VENV), some $(2) MB on disk ..."
	@rm -f $(VENV)/.failed; { $(INSTALL) -e '.$(1)' || touch $(VENV)/.failed; } | grep -E '^(Collecting|Installing|Successfully)' || true
	@test ! -e $(VENV)/.failed
	@touch $(READY)
endef

$(READY): pyproject.toml constraints.txt $(VENV)/.made
	$(call INSTALL_WITH,,420)

# Both in one step, unless `make -j` installs the packages alone at the same time.
$(DEVELOPER): pyproject.toml constraints.txt $(VENV)/.made | $(filter $(READY),$(if $(filter demo own up,$(MAKECMDGOALS)),$(READY)))
	$(call INSTALL_WITH,[dev],900)
	@# Compiled once, not by each of the test processes that start together.
	@$(BIN)/python -m compileall -q capacity_assets
	@$(BIN)/python -c 'import capacity_assets.definitions, dagster_webserver.app, hypothesis, playwright.sync_api'
	@touch $@
