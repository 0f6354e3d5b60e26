# `make demo` and `make test` need nothing but python3 >= 3.11: they make .venv themselves.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test docs site lint format types package-check extras-check clean

demo: .venv/bench
	.venv/bin/python -m benchmarks demo $(if $(SMOKE),--smoke)

test: .venv/test
	.venv/bin/python -m pytest -n 2

# The site, and the programs on its pages, which `make test` runs as well.
docs: site .venv/test
	.venv/bin/python -m pytest -n 2 tests/test_pages.py tests/test_site.py \
		tests/test_metrics_page.py tests/test_own_data_page.py

# From docs/_build/site/index.html on; a warning, such as a link to nowhere, is an error.
site: .venv/docs
	.venv/bin/python -m sphinx -W --keep-going -n -q docs docs/_build/site

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

# Each extra alone in a new environment: an hour, gigabytes, and the network.
extras-check: .venv/test
	.venv/bin/python tests/check_extras.py

.venv/bench: setup.cfg setup.py pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[bench]"
	@touch $@

.venv/docs: setup.cfg setup.py pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[docs]"
	@touch $@ .venv/bench

.venv/test: setup.cfg setup.py pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[test]"
	@touch $@ .venv/bench

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
		'python3 >= 3.11 is needed, found ' + sys.version.split()[0] + '; set PYTHON=...')"
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist docs/_build docs/api/names *.egg-info
