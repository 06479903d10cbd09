# The commands of the README. PYTHON may name any Python from 3.11 to 3.13.
PYTHON ?= python3
RUN ?= runs/quickstart
STAMP := .venv/.ready

.PHONY: setup demo test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/setup_env.py
	$(PYTHON) scripts/setup_env.py
	@touch $(STAMP)

demo: setup
	.venv/bin/selfflow demo run=$(RUN)

test: setup
	.venv/bin/python -m pytest
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

clean:
	rm -rf .venv build *.egg-info
