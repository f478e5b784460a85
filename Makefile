# make finetune lang=yo   makes the embedded model better at one language and prints what it gained
# make test               runs all tests
runs ?= runs
# Text of another kind to measure on: "sib200" (the hub) or "sib200:FOLDER".
other_text ?= sib200
# More notebook parameters, e.g. params="-p max_tokens 20000".
params ?=
VENV ?= .venv
PY := $(VENV)/bin/python
PAPERMILL := $(VENV)/bin/papermill --no-progress-bar --log-output

# What papermill and the kernel say of themselves, between the reader and the notebook's own output.
QUIET := sed -u -e '/^\(Executing\|Ending\|Input Notebook\|Output Notebook\|\[IPKernelApp\]\)/d' -e '/^<Figure/d' -e '/it\/s\]/d' | cat -s

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
export TOKENIZERS_PARALLELISM := false

.PHONY: setup finetune test unit book check-book notebooks colab compare lint format bench atlas clean

setup: $(VENV)/.ready

# uv is bootstrapped with pip inside the environment when the machine has none. The stamp makes a second call do nothing.
$(VENV)/.ready: pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then uv venv -q --clear $(VENV); \
	else python3 -m venv --clear $(VENV) && $(PY) -m pip install -qq --disable-pip-version-check uv; fi
	@echo "Installing packages into $(VENV) (several GB; a minute on a fast network) ..."
	@UV=$$(command -v uv || echo $(VENV)/bin/uv); $$UV pip install -q --python $(PY) -c constraints.txt -e ".[dev]"
	@touch $@

finetune: lang ?= yo
finetune: setup
	@mkdir -p $(runs)
	@$(VENV)/bin/ssetools languages $(lang) >/dev/null
	@$(PAPERMILL) notebooks/03_finetune.ipynb $(runs)/$(lang).ipynb -r lang $(lang) -r other_text $(other_text) \
	  -r runs $(runs) $(params) 2>&1 | $(QUIET)
	@echo "  notebook: $(runs)/$(lang).ipynb"

test: setup
	@$(PY) -m pytest

unit: setup
	@$(PY) -m pytest -m "not slow"

lint: setup
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/lint-imports --no-logo --no-cache

format: setup
	@$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

# Executes what the book lacks or has from another source, for all languages; stopped, it goes on. lang=is: one, anew.
notebooks: setup
	@$(PY) book/execute.py $(lang) --runs $(runs)/book --other-text $(other_text)

# Every method on equal terms: three languages in full with ablations, the other ten at the rates chosen there with one
# seed of its own each, and the summary of all. May be stopped and started again.
compare: setup
	@$(PY) -m study.compare yo is ka --ablations --runs $(runs) --other-text $(other_text)
	@$(PY) -m study.compare mt af cy mk lv lt sl sk et ne --like yo is ka --runs $(runs) \
	  --other-text $(other_text)

book: setup
	@start=$$(date +%s); $(VENV)/bin/jupyter-book build . --toc book/_toc.yml -W --keep-going -q && \
	  echo "Built in $$(($$(date +%s) - start)) s."
	@$(PY) book/check.py && echo "The book is in _build/html/index.html"

# Every page in a browser, as wide as a desktop and a phone, light and dark; screenshots in _build/reader/.
check-book: book
	@$(PY) book/reader.py

# 01 to 04 from the wheel alone, in an environment like Colab's.
colab: setup
	@PATH="$(abspath $(VENV))/bin:$$PATH" scripts/colab_proof.sh

bench: setup
	@mkdir -p book/results/benchmarks
	@$(PY) benchmarks/profiling.py book/results/benchmarks/profiling.json
	@$(PY) benchmarks/training.py book/results/benchmarks/training.json
	@$(PY) benchmarks/plan.py book/results/benchmarks

# Neurons of every language: counts, sets and analyses; may be stopped and started again.
atlas: setup
	@$(PY) -m study.atlas.make --runs $(runs)

clean:
	rm -rf _build .pytest_cache .ruff_cache
