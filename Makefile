# make demo, make test: each does its own set-up. make help lists the rest.

# The first Python on the path that is new enough; name another one with PYTHON=…
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; done; echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
# How many opportunities the demo wins.
N ?= 5
# On which versions of Python test-all runs.
VERSIONS ?= 3.11 3.12 3.13
# How many tests run at once: they wait more than they compute, so more than there are cores.
WORKERS ?= 8
# How many inputs the fuzzer tries.
FUZZ_INPUTS ?= 1000000
# What the exporters declare and never import.
NEVER_IMPORTED := $(addprefix --no-emit-package ,googleapis-common-protos msrest oauthlib requests-oauthlib)
# pip, with a progress that fits on the screen.
PIP := $(BIN)/python sandbox/install.py
# Containers often set this. Then each of the many processes here would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
# Where a build server reads the results of the tests.
junit = $(if $(RESULTS),--junit-xml=$(RESULTS)/$(1).xml)
# In the sandbox, Dataverse is set up by the same command as in a real environment.
CONNECT := $(BIN)/python -m operations connect --application-id {function} --yes
CODE := GenerateInvoiceFunction shared operations sandbox tests infrastructure benchmarks examples

.DEFAULT_GOAL := help
.PHONY: help demo start operations test test-all faults fuzz pictures mutants bench package sbom audit scan templates check snapshot format clean lock

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "make %-10s %s\n", $$1, $$2 }'

demo: $(VENV)/.sandbox ## win opportunities, watch the invoices come and be booked: N=200 for more
	@$(BIN)/python -m sandbox demo --count $(N) --connect-with '$(CONNECT)' \
		--consumer '$(BIN)/python examples/python/consumer.py'

start: $(VENV)/.sandbox ## run the sandbox and its dashboard until Ctrl-C
	@$(BIN)/python -m sandbox start --opportunities 100 --connect-with '$(CONNECT)' --beside '$(BIN)/python -m operations dashboard --open'

operations: .venv-operations/.installed ## install the operators' commands, without development tools
	@echo ".venv-operations/bin/python -m operations --help"

test: $(VENV)/.dev ## run all tests; RESULTS=folder also writes reports for a build server
	$(BIN)/python -m pytest $(call junit,unit) -n $(WORKERS) --dist worksteal --cov --cov-fail-under=100 --cov-report=term \
		$(if $(RESULTS),--cov-report=xml:$(RESULTS)/coverage/coverage.xml) tests/unit tests/contract
	$(BIN)/python -m pytest $(call junit,sockets) -n $(WORKERS) --dist worksteal tests/sandbox tests/end_to_end tests/faults

test-all: ## run all tests on every supported Python: VERSIONS=3.12 for fewer
	@for version in $(VERSIONS); do \
		python$$version -c '' 2>/dev/null || missing="$$missing python$$version"; done; \
	if [ "$$missing" ]; then echo "missing:$$missing. Install what is missing and have it on the path (with pyenv:" \
		"PYENV_VERSION=3.11:3.12:3.13 make test-all), or name what is there: make test-all VERSIONS=…" >&2; exit 1; fi
	set -e; for version in $(VERSIONS); do \
		$(MAKE) test PYTHON=python$$version VENV=.venv-$$version; done

faults: $(VENV)/.dev ## prove the guarantee in full, as docs/guarantee.md describes; takes long
	$(BIN)/python tests/faults/run_histories.py --count 10000
	$(BIN)/python -m pytest -n 2 tests/faults/test_proof_can_fail.py
	$(BIN)/python tests/faults/run_outages.py
	$(BIN)/python tests/faults/run_simultaneous.py --rounds 100
	$(BIN)/python tests/faults/run_socket_histories.py --count 300
	$(BIN)/python tests/faults/run_matrix.py

fuzz: $(VENV)/.dev ## fuzz what reads events, responses and AMQP frames: FUZZ_INPUTS=100000 for fewer
	@$(BIN)/python tests/fuzz/opportunity_won.py fuzz --inputs $(FUZZ_INPUTS) --found build/fuzz/opportunity-won
	@$(BIN)/coverage run --data-file=build/.coverage-fuzz --branch --source=shared \
		tests/fuzz/opportunity_won.py replay build/fuzz/opportunity-won
	@$(BIN)/coverage report --data-file=build/.coverage-fuzz --include=shared/opportunity_won.py
	@$(BIN)/python tests/fuzz/dataverse_response.py fuzz --inputs $(FUZZ_INPUTS) --found build/fuzz/dataverse-response
	@$(BIN)/coverage run --data-file=build/.coverage-fuzz --branch --source=shared \
		tests/fuzz/dataverse_response.py replay build/fuzz/dataverse-response
	@$(BIN)/coverage report --data-file=build/.coverage-fuzz --include=shared/response.py,shared/record.py
	@$(BIN)/python tests/fuzz/amqp_frames.py --frames $(FUZZ_INPUTS)

pictures: $(VENV)/.dev ## take the pictures of the dashboard anew, with Chromium
	DASHBOARD_PICTURES=docs/images $(BIN)/python -m pytest -q tests/end_to_end/test_dashboard.py

mutants: $(VENV)/.dev ## change the deployed code in small ways and see that a test fails: MUTANTS=--all for every way
	@$(BIN)/python tests/mutation/run.py $(MUTANTS)

bench: $(VENV)/.dev ## compare the product with a bare loop and with the usual sample: BENCH='--rounds 3' for options
	@$(BIN)/python -m benchmarks $(BENCH)

package: $(VENV)/.dev ## build the zip that is deployed, build/function.zip; TELEMETRY=azure-monitor or =otlp adds OpenTelemetry
	@$(BIN)/python -m infrastructure.package $(if $(TELEMETRY),--telemetry $(TELEMETRY))

sbom: build/function.requirements.txt .venv-scan/.installed ## list what the package contains, as CycloneDX
	@.venv-scan/bin/cyclonedx-py requirements --output-reproducible --of JSON \
		-o build/function.cdx.json build/function.requirements.txt
	@echo build/function.cdx.json

audit: build/function.requirements.txt .venv-scan/.installed ## check for known vulnerabilities in what is deployed and in operations
	@.venv-scan/bin/python -m infrastructure.audit build/function.requirements.txt requirements-operations.txt

scan: .venv-scan/.installed ## scan what would be deployed for weaknesses
	@.venv-scan/bin/python -m infrastructure.bicep flatten --output build/scan
	@.venv-scan/bin/checkov --config-file infrastructure/checkov.yaml >build/scan.txt; result=$$?; cat build/scan.txt; \
		grep -q 'Passed checks: [1-9]' build/scan.txt || { echo "Nothing was scanned." >&2; exit 1; }; exit $$result

templates: $(VENV)/.dev ## compile the Bicep files to build/template (needs a Bicep compiler)
	@$(BIN)/python -m infrastructure.bicep build

check: $(VENV)/.dev ## lint, format and types; with a Bicep compiler (BICEP=path, or on the path) also the Bicep files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(wildcard $(CODE))
	@$(BIN)/python -m infrastructure.bicep check

snapshot: $(VENV)/.dev ## write anew what each environment would deploy, for review (needs a Bicep compiler)
	@$(BIN)/python -m infrastructure.bicep snapshot

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/.dev ## lock the dependencies of pyproject.toml anew (needs uv); UPGRADE=1 for newer ones
	set -e; lock() { uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet \
		$(if $(UPGRADE),--upgrade) "$$@"; }; \
	lock pyproject.toml -o requirements.txt; \
	lock pyproject.toml --extra sandbox --group operations --group examples -c requirements.txt -o requirements-sandbox.txt; \
	lock pyproject.toml --extra sandbox --group operations --group dev -c requirements-sandbox.txt -o requirements-dev.txt; \
	lock pyproject.toml --group operations -c requirements-sandbox.txt -o requirements-operations.txt; \
	for telemetry in azure-monitor otlp; do lock pyproject.toml --group telemetry-$$telemetry $(NEVER_IMPORTED) \
		-c requirements-dev.txt -o requirements-telemetry-$$telemetry.txt; done; \
	lock --group pyproject.toml:scan -o requirements-scan.txt; \
	lock --group pyproject.toml:azure -o requirements-azure.txt

clean: ## remove what the commands above made
	rm -rf .venv .venv-* build .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis

build/function.requirements.txt:
	@$(MAKE) package

# Before anything is installed: without Python, the shell's own error does not say which version is needed.
define check_python
@command -v '$(PYTHON)' >/dev/null || { echo "missing: Python 3.11 or later. Install it (Debian and Ubuntu:" \
	"apt-get install python3-venv), or name one: make PYTHON=… $(or $(MAKECMDGOALS),demo)" >&2; exit 1; }
@$(PYTHON) sandbox/prerequisites.py
endef

$(VENV)/.python: | sandbox/prerequisites.py
	$(check_python)
	@echo "Setting up $(VENV) (once) …"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.sandbox: $(VENV)/.python requirements-sandbox.txt requirements-runtime.txt
	@echo "Installing what the sandbox needs:"
	@$(PIP) -r requirements-sandbox.txt -r requirements-runtime.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.sandbox requirements-dev.txt
	@echo "Installing what the tests need:"
	@$(PIP) -r requirements-dev.txt
	@touch $@

# Tools that nothing else needs have an environment of their own.
.venv-%/.installed: requirements-%.txt
	$(check_python)
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@
