# Everything here works on a bare machine with Python 3.11 to 3.13: each target first makes what it needs.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
PIP := $(RUN) -m pip install --disable-pip-version-check

# Nothing but `setup` touches the network, and nothing asks a hub. One thread a test worker: two that use all cores each
# are slower than one.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint gpu-check smoke clean

help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(READY) ## Make .venv with the pinned versions; a second call costs nothing

# The stamp is a file inside .venv, so that deleting .venv is all it takes to start anew.
$(READY): pyproject.toml requirements.lock tools/cure_torchvision.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed and $(PYTHON) is not: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(RUN) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing torch, transformers, trl and what they need into $(VENV): 1.6 GB and about two minutes without a GPU"
	@$(PIP) --quiet --quiet --upgrade pip
	@$(PIP) -e '.[dev]' -c requirements.lock
	@$(RUN) tools/cure_torchvision.py
	@$(PIP) --quiet --no-deps dashscope -c requirements.lock  # for one file of it, Qwen's vocabulary, and none of its code
	@touch $@

demo: setup ## Train the small base model by GRPO on this machine, end with a table and a figure
	$(OFFLINE) $(RUN) run.py model=base method=grpo

test: setup ## Pass the tests
	$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) -m pytest -m 'not engines' -n $(WORKERS) --dist loadfile

gpu-check: setup ## On a machine with a GPU: one step of the paper's recipe at true size, with time and memory
	$(OFFLINE) $(RUN) -m visual_r1.gpu_check $(GPU_CHECK)

smoke: setup ## Look at a new DATASET=, MODEL= or METHOD=: five prompts, the answers, every solution scored
	$(OFFLINE) $(RUN) -m visual_r1.cli smoke \
		$(if $(DATASET),dataset=$(DATASET)) $(if $(MODEL),model=$(MODEL)) $(if $(METHOD),method=$(METHOD))

lint: setup ## Check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m ty check --no-progress

clean: ## Delete .venv and caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
