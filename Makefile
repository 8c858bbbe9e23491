# Each command does all its own set-up in .venv; a second call finds it done.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
READY := .venv/.ready
BROWSER := .venv/.browser
KFP := .venv-kubeflow/bin
KUBEFLOW := .venv-kubeflow/.ready
SIDE_BY_SIDE := -n 2 --dist loadscope --no-loadscope-reorder
MEASURES := bench/help.py bench/optimum.py bench/algorithms.py bench/lesson.py bench/memory.py bench/reading.py bench/survival.py bench/mutants.py bench/coverage.py bench/headlines.py bench/label.py bench/sampling.py bench/assemble.py bench/ppo_against_trl.py bench/reward_against_trl.py

.PHONY: quickstart test exact mutants golden fuzz kills wheel acceptance kubeflow kubeflow-kill dockerfile measure docs clean

quickstart: $(READY)
	$(BIN)/preferent quickstart runs/quickstart

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE)

exact: $(READY)
	$(BIN)/python -m pytest -q --durations=5 tests/exact

mutants: $(READY)
	$(BIN)/python bench/mutants.py --strict

golden: $(READY)
	@test -n "$(BASE)" || { echo "name the commit to compare the working tree with: make golden BASE=COMMIT"; exit 2; }
	$(BIN)/python bench/golden.py $(BASE) $(GOLDEN)

acceptance: $(BROWSER)
	$(BIN)/python -m pytest -q -rs --durations=12 $(SIDE_BY_SIDE) -m 'acceptance and not slow'
	PREFERENT_EXAMPLES=1000 $(BIN)/python -m pytest -q tests/data/test_formats.py -k breaks_the_reader

# The pipelines, in an environment of their own: what kfp pins does not fit the other one.
kubeflow: $(KUBEFLOW)
	$(KFP)/python -m pytest -q -rs --durations=8 $(SIDE_BY_SIDE) -m "" \
		tests/kubeflow examples/kubeflow tests/data/test_remote_files.py tests/data/test_remote_stores.py

kubeflow-kill: $(KUBEFLOW)
	$(KFP)/python bench/kubeflow_kills.py

dockerfile: $(READY)
	$(BIN)/python bench/dockerfile.py

fuzz: $(READY)
	$(BIN)/python bench/fuzz.py

kills: $(READY)
	$(BIN)/python bench/kills.py $(KILLS)

wheel: $(READY)
	$(BIN)/python bench/wheel.py

measure: $(BROWSER)
	$(BIN)/python -m pytest -q -m slow
	set -e; for script in $(MEASURES); do echo "== $$script"; $(BIN)/python $$script; done

docs: $(READY)
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "preferent needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -q preferent
	touch $(READY)

$(KUBEFLOW): pyproject.toml constraints-kubeflow.txt
	@test -n "$(PYTHON)" || { echo "preferent needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv-kubeflow
	$(KFP)/python -m pip install --quiet --constraint constraints-kubeflow.txt --editable '.[kubeflow,remote]' \
		google-cloud-pipeline-components 'moto[s3,server]' pandas pytest pytest-xdist
	touch $(KUBEFLOW)

# What the tests of pages need: Chromium (a Debian package), axe-core, and the page of LLM Comparator.
$(BROWSER): $(READY)
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
		|| { echo "the tests of pages need Chromium: install it so that 'chromium' is on the path"; exit 1; }
	npm install --silent --no-audit --no-fund --no-save --prefix .venv/axe axe-core@4.14.1
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/llm_comparator --upgrade llm-comparator==0.1
	touch $(BROWSER)

clean:
	rm -rf .venv .venv-kubeflow site build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
