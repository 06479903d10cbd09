# The commands of the README. PYTHON may name any Python from 3.11 to 3.14, PYTEST adds options to pytest.
PYTHON ?= python3
PYTEST ?=
RUN ?= runs/quickstart
STAMP := .venv/.ready
STAMP_FULL := .venv-full/.ready
FFMPEG := $(CURDIR)/.venv-full/ffmpeg

.PHONY: setup demo test site setup-full test-full clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/setup_env.py
	$(PYTHON) tools/setup_env.py
	@touch $(STAMP)

demo: setup
	.venv/bin/selfflow demo run=$(RUN)

test: setup
	.venv/bin/python -m pytest $(PYTEST)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/basedpyright --pythonpath .venv/bin/python

site: setup
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[site]'
	.venv/bin/mkdocs build --strict
	@echo "open build/site/index.html; for its search, serve it: python3 -m http.server -d build/site"

setup-full: $(STAMP_FULL)

$(STAMP_FULL): pyproject.toml constraints-full.txt tools/setup_env.py
	$(PYTHON) tools/setup_env.py --full
	@touch $(STAMP_FULL)

test-full: setup-full
	LD_LIBRARY_PATH="$(FFMPEG)$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}" .venv-full/bin/python -m pytest $(PYTEST)

clean:
	rm -rf .venv .venv-full build *.egg-info
