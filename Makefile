# Two commands for users: `make demo` trains the default recipe, `make check` runs everything CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

$(VENV)/base: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	touch $@
