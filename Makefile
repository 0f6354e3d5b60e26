# `make demo` and `make test` need nothing but python3 >= 3.11: they make .venv themselves.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint format types package-check clean

demo: .venv/bench
	.venv/bin/python -m benchmarks demo $(if $(SMOKE),--smoke)

test: .venv/test
	.venv/bin/python -m pytest -n 2

lint: .venv/test
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .

format: .venv/test
	.venv/bin/python -m ruff check --fix .
	.venv/bin/python -m ruff format .

types: .venv/test
	.venv/bin/python -m mypy

# Minutes, and the network: the wheel is built, installed elsewhere and tried there.
package-check: .venv/test
	.venv/bin/python tests/check_package.py

.venv/bench: setup.cfg setup.py pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[bench]"
	@touch $@

.venv/test: setup.cfg setup.py pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[test]"
	@touch $@ .venv/bench

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
		'python3 >= 3.11 is needed, found ' + sys.version.split()[0] + '; set PYTHON=...')"
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist *.egg-info
