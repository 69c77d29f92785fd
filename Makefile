# make report | test | lab | browser; see CONTRIBUTING.md for the rest.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: report test coverage lab browser hooks export outputs scale benchmarks clean

report: $(READY)  ## write the LCB report on the field experiment into reports/
	$(BIN)/offrl-wb report lcb_contextual -o reports

# A worker a core, each with one thread; tests/conftest.py says what stays with one worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 \
  --dist loadgroup --no-loadscope-reorder

test: $(READY)  ## all checks and tests
	$(PYTEST)

coverage: $(READY)  ## the same, counting the lines that are reached; takes up to twice as long
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

lab: $(READY)  ## JupyterLab on the notebooks
	$(BIN)/python -m jupyterlab --notebook-dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb \
	  $$([ "$$(id -u)" != 0 ] || echo --allow-root)

# Any change of what is needed, or of the pins, installs again; otherwise nothing is done.
$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "offrl_wb needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv; this takes a minute or two, once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

browser: $(READY)  ## install a Chromium for the browser tests, if there is none
	@if $(BIN)/python -m tests.browser.chromium; then :; \
	elif command -v apt-get >/dev/null; then \
	  as=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  { $$as apt-get update -qq && $$as apt-get install -y -qq chromium; } \
	  || $(BIN)/python -m playwright install --with-deps chromium; \
	else $(BIN)/python -m playwright install chromium; fi
	@$(BIN)/python -m tests.browser.chromium

hooks: $(READY)  ## nbdev's git hooks: notebooks merge cell by cell, and are trusted after a pull
	$(BIN)/nbdev_install_hooks

export: $(READY)  ## notebooks -> library, cleaned and formatted
	$(BIN)/ruff check --fix nbs tutorials tests setup.py
	$(BIN)/ruff format nbs tutorials tests setup.py
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean --fname nbs
	$(BIN)/nbdev_clean --fname tutorials

outputs: $(READY)  ## run every notebook whose committed outputs are stale
	$(BIN)/python -m offrl_wb.app.outputs refresh
	$(BIN)/python -m offrl_wb.app.outputs readme

scale: $(READY)  ## the paper-scale experiments; resumable, two hours of two cores
	$(BIN)/python -m offrl_wb.theory.lcb_scale .lcb_scale 2
	OMP_NUM_THREADS=1 $(BIN)/python -m offrl_wb.theory.glow_scale .glow_scale 2
	$(BIN)/python -m offrl_wb.app.explore_glow .glow_gamma 2
	OMP_NUM_THREADS=1 $(BIN)/python -m offrl_wb.theory.ftpedel_scale .ftpedel_scale 2
	OMP_NUM_THREADS=1 $(BIN)/python -m offrl_wb.theory.tabular_riql .tabular_riql_scale 2
	OMP_NUM_THREADS=1 $(BIN)/python -m offrl_wb.agents.riql .riql_networks_scale
	OMP_NUM_THREADS=1 $(BIN)/python -m offrl_wb.app.wsrl_scale .wsrl_scale 2

benchmarks: $(READY)  ## timings; run them on a quiet machine
	for bench in tests/benchmarks/bench_*.py; do $(BIN)/python $$bench || exit 1; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage* htmlcov
