# make reproduce-table1           the demo: generates clips, extracts, trains and prints Table 1 (offline once installed)
# make reproduce-table1 ROOT=R    the same on a dataset root of yours (see README)
# make test                       lint, types, tests; installs what they need as well
# make test-slow                  the tests that take long: kills, full disks, full-size encoders, every example (minutes)
# make test-cluster               tests on Ray clusters of several nodes, which are killed meanwhile (minutes)
# make bench                      every benchmark in its quick form (benchmarks/README.md has the real ones)
# make docs                       the documentation site, in build/docs/index.html
# make install                    only .venv with alphafuse in it
# make dev                        the same with everything for development; edits count at once

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
ROOT ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
EDITABLE = $(if $(wildcard $(VENV)/editable),--config-settings editable_mode=strict --editable)
SOURCES := setup.cfg pyproject.toml README.md $(shell find alphafuse extract heads data -type f -not -name '*.pyc')

.PHONY: install dev test test-slow test-cluster lint bench docs reproduce-table1 clean

install: $(VENV)/installed

# `rm -rf build`: a module that was deleted would live on in there, and so would the links of an editable installation
$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build
	$(PIP) install $(EDITABLE) .
	touch $@

$(VENV)/installed-dev: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build
	$(PIP) install $(EDITABLE) '.[dev]'
	touch $(VENV)/installed $@

# strict: a folder of links, one for each file, in which mypy and lint-imports see the package as it is; files that are
# new are linked by the next `make dev`, `make test` or `make lint`
dev:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	touch $(VENV)/editable
	rm -f $(VENV)/installed-dev
	$(MAKE) $(VENV)/installed-dev

# mypy and lint-imports look at the installed package, where the four folders are one
lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd tests && ../$(BIN)/mypy --config-file ../pyproject.toml -p alphafuse
	cd tests && ../$(BIN)/mypy --config-file ../pyproject.toml $(patsubst %,../%,$(wildcard benchmarks/*.py))
	cd tests && ../$(BIN)/lint-imports --no-cache ../pyproject.toml

test: lint
	$(BIN)/pytest -n auto -m 'not slow and not cluster'

test-slow: $(VENV)/installed-dev
	$(BIN)/pytest -n auto -m 'slow and not cluster'

test-cluster: $(VENV)/installed-dev
	$(BIN)/pytest -m cluster

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/bench_all.py

docs: $(VENV)/installed-dev
	$(BIN)/python -P -m sphinx --fail-on-warning --keep-going --quiet docs build/docs
	@echo 'written: build/docs/index.html'

reproduce-table1: install
ifeq ($(ROOT),)
	$(BIN)/alphafuse data demo --root demo
	$(BIN)/alphafuse extract --split all --root demo
	$(BIN)/alphafuse table1 --root demo
else
	$(BIN)/alphafuse extract --split all --root $(ROOT)
	$(BIN)/alphafuse table1 --root $(ROOT)
endif

clean:
	rm -rf $(VENV) build *.egg-info demo .mypy_cache .pytest_cache .ruff_cache
