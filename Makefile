# make reproduce-table1           the demo: generates clips, extracts, trains and prints Table 1 (offline once installed)
# make reproduce-table1 ROOT=R    the same on a dataset root of yours (see README)
# make test                       lint, types, tests
# make test-cluster               tests on Ray clusters of several nodes, which are killed meanwhile (minutes)
# make docs                       the documentation site, in build/docs/index.html
# make install                    only .venv with alphafuse in it

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
ROOT ?=
BIN := $(VENV)/bin
SOURCES := setup.cfg pyproject.toml README.md $(shell find alphafuse extract heads data -type f -not -name '*.pyc')

.PHONY: install test test-cluster lint docs reproduce-table1 clean

install: $(VENV)/installed

$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build  # a module that was deleted would live on in there
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd tests && ../$(BIN)/mypy --config-file ../pyproject.toml -p alphafuse  # the installed package, not the folder

test: lint
	$(BIN)/pytest -n auto -m 'not cluster'

test-cluster: install
	$(BIN)/pytest -m cluster

docs: install
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
