# Two commands: `make demo` and `make test`. Everything is installed into .venv, from requirements.lock.
PYTHON ?= python3
VENV := .venv
# The TPU compiler, 700 MB, outside the virtual environment: there, every import of jax would look for a TPU.
LIBTPU := build/libtpu
RUN := $(VENV)/bin/llmstack
# Large arrays in huge pages: 1.1 times the speed on a CPU.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
READY := $(VENV)/.ready
STAGES := lora reward dpo distilled ppo skills grpo constitution revised

.PHONY: demo $(STAGES) test faults slow aot lint lock clean

$(READY): requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmstack needs Python 3.11 or newer, this is %s: make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Text with known truth -> tokenizer -> pretraining -> SFT; then what learns from these, two at a time where make can keep
# their output apart (4.0 on); then one page of what each answers, and a table with limits that are checked.
demo: $(READY)
	$(RUN) --config configs/world.py --workdir runs/world-text
	$(RUN) --config configs/pretrain.py:world --workdir runs/world
	$(RUN) --config configs/recall.py --workdir runs/world
	$(RUN) --config configs/sft.py:world --workdir runs/sft
	$(MAKE) --no-print-directory $(if $(filter output-sync,$(.FEATURES)),-j 2 --output-sync=target) $(STAGES)
	$(RUN) compare --prompt 'What is the capital of France?' --prompt 'Which continent is Zambia on?' \
	  --prompt 'What is 4 + 5 - 7 + 3?' --prompt 'How do I burn the boat of Lena?' --html runs/compare.html \
	  runs/world runs/sft runs/sft-lora runs/dpo runs/distilled runs/ppo runs/skills runs/grpo runs/revised
	$(RUN) --config configs/assistant.py --workdir runs/assistant

# What comes after SFT, which has to be there.
$(STAGES): $(READY)
lora:
	$(RUN) --config configs/sft.py:world-lora --workdir runs/sft-lora
reward:
	$(RUN) --config configs/reward.py:world --workdir runs/reward
dpo:
	$(RUN) --config configs/prefer.py:world --workdir runs/dpo
distilled: dpo
	$(RUN) --config configs/distill.py:world --workdir runs/distilled
ppo: reward
	$(RUN) --config configs/rl.py:world-ppo --workdir runs/ppo
skills:
	$(RUN) --config configs/sft.py:world-skills --workdir runs/skills
grpo: skills
	$(RUN) --config configs/rl.py:world-grpo --workdir runs/grpo
constitution: skills
	$(RUN) --config configs/constitution.py --workdir runs/constitution
revised: constitution
	$(RUN) --config configs/sft.py:world-revised --workdir runs/revised

test: $(READY)
	$(VENV)/bin/python -m pytest -n 2

faults: $(READY)
	$(VENV)/bin/python -m pytest -m "faults or browser" -n 1

slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

$(LIBTPU)/.ready: requirements-tpu.lock $(READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade --target $(LIBTPU) -r $<
	@touch $@

# The training and the decode step compiled for TPUs that are not here: memory, FLOPs and collectives per device.
aot: $(LIBTPU)/.ready
	TPU_LIBRARY_PATH=$(LIBTPU)/libtpu/libtpu.so TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu \
	  TPU_WORKER_HOSTNAMES=localhost TPU_ACCELERATOR_TYPE=v5litepod-16 \
	  $(RUN) --config configs/aot.py --workdir runs/aot $(ARGS)  # line 2 silences two warnings, whatever the topology

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# One lock for every Python from 3.11 on; jax is newer on 3.12+. A second for the libtpu that belongs to each jax.
OTHERS := jax jaxlib ml-dtypes numpy opt-einsum scipy requests certifi charset-normalizer idna urllib3
lock:
	uv pip compile setup.py --extra plot --extra data --extra rewards --extra dev --universal --python-version 3.11 --fork-strategy requires-python \
	  --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' -o requirements.lock
	echo 'jax[tpu]' | uv pip compile - --constraint requirements.lock --universal --python-version 3.11 \
	  --fork-strategy requires-python --generate-hashes --no-annotate --no-emit-index-url $(OTHERS:%=--no-emit-package %) \
	  --custom-compile-command 'make lock' -o requirements-tpu.lock

clean:
	rm -rf $(VENV) runs build *.egg-info
