# The front door. Every target sets up .venv first, when pyproject.toml or constraints.txt changed, and not otherwise.
#
#   make pipeline                            all stages on the embedded demo
#   make ppo RECIPE=mine.yaml                another recipe: a file, or a name under pipeline/recipes/
#   make rm SET="rm.epochs=2 seed=3"         override keys, separated by spaces
#   make pipeline STORE=/big/disk            another store
#   make gpu-check GPU="rollout steps"       some of what it checks; --pretend: without a GPU, at tiny sizes
#   make bench BENCH="ppo --size small"      some of the measurements; --quick: a smoke test
#   make setup LOCK=requirements.lock        install nothing but what `make lock` wrote there, by its hashes
#   make soak SOAK=5 SOAK_ITERATIONS=1000 SOAK_MINUTES=1    five kills, 1,000 iterations of PPO, a minute of edits of each format

PYTHON ?= python3
RECIPE ?= demo
SET    ?=
STORE  ?=
BENCH  ?=
GPU    ?=
ROUNDS ?=
LOCK   ?=
SOAK   ?= 200
SOAK_ITERATIONS ?= 20000
SOAK_MINUTES ?= 5

VENV  := .venv
STAMP := $(VENV)/.installed
# One worker per core, and one more for slow tests (tests/conftest.py); a file stays in one worker, so that its tests share what they set
# up. A worker that crashes ends the run: with a new one in its place it would wait for ever for the file's other tests.
PYTEST_ARGS := --numprocesses auto --dist loadfile --no-loadscope-reorder --max-worker-restart=0
RLHF  := $(VENV)/bin/rlhf
EXTRAS := dev,qlora,s3
WRITE_LOCK := import json, sys; [print(i["metadata"]["name"] + "==" + i["metadata"]["version"], "--hash=sha256:" + i["download_info"]["archive_info"]["hashes"]["sha256"]) for i in json.load(sys.stdin)["install"] if "archive_info" in i["download_info"]]
# One option per word; a directory given as STORE stays one word.
ARGS   = '$(RECIPE)' $(foreach word,$(SET),--set '$(word)') $(STORE_OPTION)
STORE_OPTION = $(if $(STORE),--store '$(STORE)')

# Where Python is told to keep nothing that it compiled, as container images often tell it, each of hundreds of processes would compile
# all of our modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup lock pretrain sft rm ppo evaluate pipeline inspect rounds test test-slurm test-vllm soak check check-style check-types check-tests bench gpu-check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Install everything into .venv

$(STAMP): pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
ifdef LOCK
	$(VENV)/bin/python -m pip install --quiet --require-hashes --requirement '$(LOCK)'
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	$(VENV)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
endif
	@touch $@

lock: $(STAMP) ## Write requirements.lock: every package that setup installs, with the sha256 of the file that your index serves for this machine
	@mkdir -p build
	$(VENV)/bin/python -m pip install --dry-run --ignore-installed --quiet --report build/lock.json --constraint constraints.txt '.[$(EXTRAS)]' hatchling editables
	@$(VENV)/bin/python -c '$(WRITE_LOCK)' < build/lock.json > build/requirements.lock && mv build/requirements.lock requirements.lock

pretrain: $(STAMP) ## Stage 0, continued pre-training, for a recipe that has it
	@$(RLHF) run --until pretrain $(ARGS)

sft: $(STAMP) ## Stage 1, supervised fine-tuning
	@$(RLHF) run --until sft $(ARGS)

rm: $(STAMP) ## Stage 2, the reward model, and what it needs
	@$(RLHF) run --until rm $(ARGS)

ppo: $(STAMP) ## Stage 3, PPO, and what it needs
	@$(RLHF) run --until ppo $(ARGS)

evaluate: $(STAMP) ## Stage 4, what base, SFT and PPO say to held-out prompts, and what it needs
	@$(RLHF) run --until evaluate $(ARGS)

pipeline: $(STAMP) ## All stages; what is up to date is reused
	@$(RLHF) run $(ARGS)

inspect: $(STAMP) ## Write the newest report, say its verdict, and show it where there is a desktop
	@$(RLHF) report --open $(STORE_OPTION)

rounds: $(STAMP) ## Three rounds of the demo: a simulated annotator ranks, reward model and policy learn; ROUNDS="--seed 12 --data 101"
	@PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(VENV)/bin/python -P -m pipeline.cli.demo_rounds $(ROUNDS) $(STORE_OPTION)

test: $(STAMP) ## All tests
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-slurm: $(STAMP) ## The stages through a SLURM that it installs and starts on this machine; as root
	tests/end_to_end/slurm/start.sh
	RLHF_TEST_SLURM=1 $(VENV)/bin/python -m pytest tests/end_to_end/slurm

test-vllm: $(STAMP) ## PPO with a vLLM server, which it installs into build/vllm
	tests/end_to_end/vllm/install.sh build/vllm
	RLHF_TEST_VLLM=$(CURDIR)/build/vllm/bin/vllm $(VENV)/bin/python -m pytest tests/end_to_end/vllm

soak: $(STAMP) ## 200 random kills, the memory of 20,000 PPO iterations, five minutes of edits of each format that is parsed
	RLHF_TEST_SOAK=1 SOAK=$(SOAK) SOAK_ITERATIONS=$(SOAK_ITERATIONS) SOAK_MINUTES=$(SOAK_MINUTES) $(VENV)/bin/python -m pytest -s tests/end_to_end/soak

check: $(STAMP) ## Format, lint, types and the fast tests
	@$(MAKE) --no-print-directory --jobs --keep-going --output-sync=target check-style check-types check-tests

# At once: the type checker keeps one core at work, and the tests wait now and then.
check-style:
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

# Its young objects get more room than Node gives them: a tenth less time.
check-types:
	NODE_OPTIONS="$$NODE_OPTIONS --max-semi-space-size=128" $(VENV)/bin/pyright

check-tests:
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS) -m "not slow"

bench: $(STAMP) ## Measure speed and memory against TRL, into tests/bench/results/
	@$(VENV)/bin/python -m tests.bench $(BENCH)

# What measures speed runs alone, the rest three beside each other (tests/gpu/lanes.py).
gpu-check: $(STAMP) ## What only a GPU can show: parity, speed, memory, into tests/bench/results/gpu.md; exits 2 without one
	@$(VENV)/bin/python -m tests.gpu $(GPU)

clean: ## Remove .venv and caches; the store stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist build
	find data pipeline stages tests -name __pycache__ -type d -prune -exec rm -rf {} +
