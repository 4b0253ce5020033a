# Headrace: `make up` is all that a newcomer needs, `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := .venv/bin
INSTALLED := .venv/.installed
# A question for `make demo-question`, and options for `make test`.
Q ?= How long are tokens kept?
ARGS ?=

##@ Use it
.PHONY: up
up: $(INSTALLED) ## Start everything on this machine and open the chat (Ctrl-C stops it)
	@exec $(BIN)/python -m deploy.up

.PHONY: demo-question
demo-question: export QUESTION = $(Q)
demo-question: $(INSTALLED) ## Ask a running Headrace one question: make demo-question Q="How long are tokens kept?"
	@exec $(BIN)/python -m deploy.ask "$$QUESTION"

.PHONY: install
install: $(INSTALLED) ## Make .venv with everything that requirements.lock names (instant when nothing changed)
	@echo ".venv has what requirements.lock names"

$(INSTALLED): requirements.lock pyproject.toml deploy/install.sh
	@deploy/install.sh

##@ Work on it
# In the order of their names: the long tests, of integration/, come before the short ones of unit/, which fill the end.
.PHONY: test
test: $(INSTALLED) ## Run all tests, a process for each core, on services that they start: make test ARGS="-k fold"
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## Check style (ruff), shell scripts (shellcheck) and the Dockerfile (hadolint)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck .ci/run deploy/*.sh
	$(BIN)/hadolint deploy/Dockerfile

.PHONY: format
format: $(INSTALLED) ## Format the code, and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: types
types: $(INSTALLED) ## Check types (mypy, strict, tests too)
	$(BIN)/mypy

.PHONY: contracts
contracts: $(INSTALLED) ## Check who imports whom (import-linter)
	$(BIN)/lint-imports --no-logo

.PHONY: docs
docs: $(INSTALLED) ## Write the reference pages that are generated from the code
	$(BIN)/python -m docs.generate

.PHONY: bench
bench: $(INSTALLED) ## Measure the token path against a plain proxy; needs a real Kafka (KAFKA_BOOTSTRAP_SERVERS)
	$(BIN)/python -m bench

.PHONY: chaos
chaos: $(INSTALLED) ## Break workers, brokers, networks and models under load, and check every answer (40 minutes; ARGS=--short: 4)
	@exec $(BIN)/python -m bench.chaos $(ARGS)

.PHONY: chaos-windows
chaos-windows: $(INSTALLED) ## Kill workers and stores while finished turns flow, and check every row (9 minutes; ARGS=--short: 3)
	@exec $(BIN)/python -m bench.chaos_windows $(ARGS)

.PHONY: evaluate
evaluate: $(INSTALLED) ## Measure how well passages are found, and that there are none, on questions with known answers
	@exec $(BIN)/python -m mlops.evaluate $(ARGS)

.PHONY: mutants
mutants: $(INSTALLED) ## Switch off one safeguard after the other, and see that a test notices
	@exec $(BIN)/python -m bench.mutants $(ARGS)

.PHONY: check
check: lint types contracts test ## All of the above checks, as a change needs them

##@ Keep it up
.PHONY: lock
lock: ## Resolve the dependencies anew and write requirements.lock
	@deploy/lock.sh

.PHONY: clean
clean: ## Remove .venv and all caches (not the data of `make up`)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build headrace.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## Print this
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
