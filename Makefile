# Targets: demo, test, lint, bench, system-deps. The first run makes .venv and installs the pins.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Debian packages that tests of some features need; EDGEPORT_REQUIRE names those that must be there.
SYSTEM_PACKAGES := openssh-server openssh-client adb chromium mesa-vulkan-drivers

.PHONY: demo test lint bench system-deps clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch -e ".[dev]"
	touch $@

demo: $(BIN)/.installed
	$(BIN)/edgeport export padre --device "Samsung Galaxy S24" --precision w8a16 -o build/padre

test: lint
	$(BIN)/pytest -m "not slow"

lint: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(BIN)/.installed
	$(BIN)/python -m benchmarks.run padre

system-deps:
	@missing=$$(for package in $(SYSTEM_PACKAGES); do \
	  dpkg -s $$package >/dev/null 2>&1 || echo $$package; done); \
	if [ -z "$$missing" ]; then echo "system-deps: all are there"; \
	elif [ "$$(id -u)" -ne 0 ]; then echo "system-deps: as root: apt-get install" $$missing; exit 1; \
	else apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing; fi

clean:
	rm -rf $(VENV) build
