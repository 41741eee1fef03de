# Each target sets up what it needs in .venv: only Python (3.11 or newer) and pip are expected.
OLD_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(OLD_ENOUGH)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test lint bench diagnose results test-browser doctor clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo          make images, learn from their tags, print the table, write runs/demo/report.html"
	@echo "make test          the ordinary tests (under 10 minutes on 2 cores)"
	@echo "make lint          style, types, layers"
	@echo "make bench         side-by-side measurements on this machine"
	@echo "make diagnose      the methods' slow diagnostics"
	@echo "make results       tables and plots from the committed result rows"
	@echo "make test-browser  the report in headless Chromium"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3"; exit 4; }
	$(if $(UV),$(UV) venv --quiet --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV)) || { rm -rf $(VENV); \
		echo "no virtual environment could be made: install Python's venv (Debian: apt-get install python3-venv) or uv"; exit 4; }

# One stamp for each set of extras; a changed pyproject.toml installs again.
define install
	$(if $(UV),$(UV) pip install --quiet --python $(BIN)/python -e '.$(1)',\
		{ $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade >/dev/null; } && \
		$(BIN)/python -m pip install --quiet -e '.$(1)')
	@touch $@
endef

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(call install,)

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(call install,[dev])
	@touch $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(call install,[dev$(comma)bench])
	@touch $(VENV)/.installed $(VENV)/.installed-dev

comma := ,

demo: $(VENV)/.installed
	$(BIN)/tagseg demo --out runs/demo

doctor: $(VENV)/.installed
	$(BIN)/tagseg doctor

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

diagnose: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.diagnose

results: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.results

test-browser: $(VENV)/.installed-dev
	@command -v chromium >/dev/null || { echo "chromium is needed: apt-get install chromium"; exit 4; }
	$(BIN)/python -m pytest tests/browser --run-browser

clean:
	rm -rf $(VENV) runs/demo build
