# make finetune lang=yo   trains the default model on one language and prints how it changed
# make unit               runs the tests that need no network and no large model
# make test               runs all tests
runs ?= runs
# Text of an unseen genre to evaluate on: "sib200" (from the hub) or "sib200:FOLDER".
other_text ?= sib200
# More notebook parameters, e.g. params="-p max_tokens 20000".
params ?=
VENV ?= .venv
PY := $(VENV)/bin/python
PAPERMILL := $(VENV)/bin/papermill --no-progress-bar --log-output

# Removes the messages of papermill and the kernel from the notebook's own output, and empty lines between lines of progress.
QUIET := sed -u -e '/^\(Executing\|Ending\|Input Notebook\|Output Notebook\|\[IPKernelApp\]\)/d' -e '/^<Figure/d' -e '/it\/s\]/d' \
  -e '/ of [0-9]* .*, .* left/{n;/^$$/d}' | cat -s

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
export TOKENIZERS_PARALLELISM := false

.PHONY: setup finetune test unit book check-book notebooks colab compare equal-harm lint format bench atlas clean

setup: $(VENV)/.ready

# An environment that exists is updated in place. A machine without uv gets it by pip inside the environment.
$(VENV)/.ready: pyproject.toml constraints.txt
	@test -x $(PY) || { command -v uv >/dev/null && uv venv -q $(VENV); } || python3 -m venv $(VENV)
	@command -v uv $(VENV)/bin/uv >/dev/null || $(PY) -m pip install -qq --disable-pip-version-check uv
	@echo "Installing packages into $(VENV) (several GB; a minute on a fast network) ..."
	@UV=$$(command -v uv $(VENV)/bin/uv | head -1); $$UV pip install $$([ -t 2 ] || echo -q) --python $(PY) -c constraints.txt -e ".[dev]"
	@touch $@

finetune: lang ?= yo
finetune: setup
	@mkdir -p $(runs)
	@$(VENV)/bin/ssetools languages $(lang) >/dev/null
	@$(PAPERMILL) notebooks/03_finetune.ipynb $(runs)/$(lang).ipynb -r lang $(lang) -r other_text $(other_text) \
	  -r runs $(runs) $(params) 2>&1 | $(QUIET)
	@echo "  notebook: $(runs)/$(lang).ipynb"

test: unit
	@$(PY) -m pytest -m "slow or network"

unit: setup
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 -m "not slow and not network"

lint: setup
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/lint-imports --no-logo --no-cache
	@$(VENV)/bin/basedpyright --pythonpath $(PY) ssetools

format: setup
	@$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

# Executes the notebooks that the book lacks or has from other code, for all languages; after an interruption the same
# command continues. lang=is executes one language again.
notebooks: setup
	@$(PY) book/execute.py $(lang) --runs $(runs)/book --other-text $(other_text)

# Compares all methods: three languages with rate search and ablations, the other ten at the rates chosen there with one
# seed each, and a summary. After an interruption the same command continues.
compare: setup
	@$(PY) -m study.compare yo is ka --ablations --runs $(runs) --other-text $(other_text)
	@$(PY) -m study.compare mt af cy mk lv lt sl sk et ne --like yo is ka --runs $(runs) \
	  --other-text $(other_text)

# Compares all methods at equal harm on running text: text=FOLDER with corpora/, ntrex/ and sib200/. A run takes about 15
# minutes on one core; after an interruption the same command continues, and it may run in several terminals at once.
equal-harm: setup
	@test -n "$(text)" || { echo "Name the folder of corpora/, ntrex/ and sib200/: make equal-harm text=FOLDER" >&2; exit 1; }
	@OMP_NUM_THREADS=1 $(PY) -m study.harm comparison placebo seeds rates amounts --corpora $(text)/corpora \
	  --ntrex $(text)/ntrex --sib200 $(text)/sib200 --runs $(runs)
	@$(PY) -m study.harm.summary

book: setup
	@start=$$(date +%s); $(VENV)/bin/jupyter-book build . --toc book/_toc.yml -W --keep-going -q && \
	  echo "Built in $$(($$(date +%s) - start)) s."
	@$(PY) book/check.py && echo "The book is in _build/html/index.html"

# Opens every page in a browser, at the width of a desktop and a phone, light and dark; screenshots in _build/reader/.
check-book: book
	@$(PY) book/reader.py

# Runs notebooks 01 to 04 from the wheel alone, in an environment like Colab's.
colab: setup
	@PATH="$(abspath $(VENV))/bin:$$PATH" scripts/colab_proof.sh

bench: setup
	@mkdir -p book/results/benchmarks
	@$(PY) benchmarks/profiling.py book/results/benchmarks/profiling.json
	@$(PY) benchmarks/training.py book/results/benchmarks/training.json
	@$(PY) benchmarks/busy.py book/results/benchmarks/busy.json
	@$(PY) benchmarks/plan.py book/results/benchmarks

# Counts, neuron sets and analyses of 420 languages; after an interruption the same command continues.
atlas: setup
	@$(PY) -m study.atlas.make --runs $(runs)

clean:
	rm -rf _build .pytest_cache .ruff_cache
