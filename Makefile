# Garrison. `make` alone shows what there is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(READY) ## Run the real agent on this host for half a minute and show what it does (root for real caps)
	@$(BIN)/python -m tests.demo

.PHONY: test
test: $(READY) $(VENV)/.etcd-debian $(VENV)/.promtool $(VENV)/.shells ## Run all tests; what needs root, cgroups or netlink is skipped with its reason elsewhere
	@$(BIN)/pytest $(ARGS)

.PHONY: test-kafka
test-kafka: $(READY) ## Run the tests that need Apache Kafka: fetch it with Maven (once), start brokers on loopback (Java 17)
	@$(BIN)/python -m tests.kafka.fetch
	@GARRISON_KAFKA=1 $(BIN)/pytest tests/kafka $(ARGS)

.PHONY: vm
vm: $(READY) ## Boot virtual machines with systemd, install the packages, and show what happens there (root, qemu, debootstrap; 11 minutes)
	@$(BIN)/python -m tests.vm $(ARGS)

.PHONY: demo-full
demo-full: $(READY) ## The whole product in a virtual machine: etcd with TLS and users, a broker, the DEB, from key to event
	@$(BIN)/python -m tests.vm product

.PHONY: bench
bench: $(READY) ## Measure the agent beside its peers and print a table (root; 20 minutes; ARGS="killswitch --quick")
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: check
check: $(READY) lint docs-check types ## Everything beside the tests: style, generated docs, strict types, wheel, DEB and RPM
	@$(BIN)/python packaging/build.py --quick --reuse

.PHONY: lint
lint: $(READY) ## Check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: format
format: $(READY) ## Put the style right
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: types
types: wheel ## Check types, strictly, on the package as it installs
	@rm -rf build/site
	@$(BIN)/pip install --quiet --no-deps --target build/site dist/garrison-*.whl
	@cd build/site && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p garrison

.PHONY: wheel
wheel: $(READY) ## Build the wheel and the source archive into dist/
	@rm -rf dist/garrison-*.whl dist/garrison-*.tar.gz build/lib build/bdist.*
	@$(BIN)/python -m build --no-isolation --outdir dist . > build.log 2>&1 || { cat build.log; exit 1; }
	@rm -f build.log
	@ls -1 dist

.PHONY: docs
docs: $(READY) ## Write the generated pages anew
	@$(BIN)/python -m garrison.supervisor.settings.document docs/configuration.md
	@$(BIN)/python -m garrison.supervisor.metrics.document docs/metrics.md
	@$(BIN)/python -m garrison.fleet.cli.reference docs/cli.md
	@$(BIN)/python -m garrison.fleet.manual --docs docs

.PHONY: docs-check
docs-check: $(READY) ## Fail where a generated page is out of date
	@$(BIN)/python -m garrison.supervisor.settings.document --check docs/configuration.md
	@$(BIN)/python -m garrison.supervisor.metrics.document --check docs/metrics.md
	@$(BIN)/python -m garrison.fleet.cli.reference --check docs/cli.md
	@$(BIN)/python -m garrison.fleet.manual --check docs

.PHONY: lock
lock: $(READY) ## Resolve the dependencies anew into requirements/dev.txt (needs uv)
	@uv pip compile --quiet --generate-hashes --universal --no-header --no-annotate --python-version 3.11 \
	    --extra dev pyproject.toml --output-file requirements/dev.txt
	@uv pip compile --quiet --generate-hashes --universal --no-header --no-annotate --python-version 3.11 \
	    --constraint requirements/dev.txt pyproject.toml --output-file requirements/runtime.txt
	@uv pip compile --quiet --generate-hashes --universal --no-header --no-annotate --python-version 3.11 \
	    packaging/tools.in --output-file packaging/tools.txt

.PHONY: packages
packages: $(READY) ## Build DEB and RPM, with an interpreter of their own, into dist/ (needs binutils, dpkg and rpm; ARGS=--quick)
	@$(BIN)/python packaging/build.py $(ARGS)

.PHONY: clean
clean: ## Remove everything that can be made again
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Garrison needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 69; }
	@echo "Setting up $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing: apt-get install python3-venv"; exit 69; }
	@$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# A second release of etcd for the tests that compare; unpacked, not installed, so that no server and no user comes along.
$(VENV)/.etcd-debian: $(READY)
	@$(BIN)/python -m tests.etcd.binaries
	@touch $@

# Reads the alert rules as Prometheus does; unpacked as well.
$(VENV)/.promtool: $(READY)
	@$(BIN)/python -m tests.promtool
	@touch $@

# Shells that complete and a judge of the manual pages; unpacked where they are not installed.
$(VENV)/.shells: $(READY)
	@$(BIN)/python -m tests.shells
	@touch $@
