# make run     the main job for about a minute: a pretend motor behind a real serial line, learnt live; ends by itself
# make test    all tests; they use chromium, mosquitto and ffmpeg, which apt-get installs
# make check   lint, format, types, layers
# make venv    only the virtual environment; each of the above makes it if it is missing or out of date
# make peers   one more, .venv-peers: Avalanche, for tools/bench_step.py and bench_fisher.py to compare with
#
# Variables: PYTHON=path, TORCH_INDEX=URL (see tools/make-venv), SAMPLES=frames and SPEED=times-real-time for `make run`,
# JOBS=processes for `make test`.

# The board sends SAMPLES frames at SPEED times real time and then falls silent: together they make the minute, and
# each state lasts long enough to be watched. It consolidates about once a state, so that the exam shows one more class
# at each, and sets more aside for that exam than it would over months.
SAMPLES ?= 48000
SPEED ?= 8
FOR_SHOW := -s consolidation.every_steps=15 -s exam.share=0.1
DEMO := run
# Test files side by side; each process needs some 500 MB.
JOBS ?= 2

export PYTHON TORCH_INDEX
# `python -m` and not the scripts in .venv/bin: those hold the folder's full path and break when it is moved.
VENV_PYTHON := .venv/bin/python
FOR_RUN := .venv/.installed-run
FOR_DEV := .venv/.installed-dev
FOR_PEERS := .venv-peers/.installed

# An interpreter that was upgraded away from under .venv makes everything in it out of date.
ifneq ($(shell $(VENV_PYTHON) -c 'print("works")' 2>/dev/null),works)
.PHONY: $(FOR_RUN) $(FOR_DEV)
endif

.DEFAULT_GOAL := help
.PHONY: help run test check venv peers

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

# A fresh start each time. Only a directory that edge-cl made is removed: `.format` is its mark.
run: $(FOR_RUN)
	@if [ -e $(DEMO)/.format ]; then rm -rf $(DEMO); fi
	$(VENV_PYTHON) -m edge_cl run --once --state $(DEMO) --source 'simulated:motor?samples=$(SAMPLES)&speed=$(SPEED)' \
	  $(FOR_SHOW)

test: $(FOR_DEV)
	@$(VENV_PYTHON) -m pytest -n $(JOBS) --dist loadfile

check: $(FOR_DEV)
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy
	@$(VENV_PYTHON) -m pytest -q tests/test_layers.py

venv: $(FOR_DEV)

peers: $(FOR_PEERS)

$(FOR_RUN): pyproject.toml constraints.txt
	@tools/make-venv run
	@touch $@

# What serves for development serves for running, too.
$(FOR_DEV): pyproject.toml constraints.txt
	@tools/make-venv dev
	@touch $(FOR_RUN) $@

$(FOR_PEERS): tools/make-peers constraints.txt
	@tools/make-peers
	@touch $@
