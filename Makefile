# `make demo` and `make test` work on a fresh machine: each makes .venv from setup.cfg and constraints.txt first.
PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/.installed

.PHONY: demo test check fix bench clean

demo: $(ENV)  ## synthetic sets -> shards -> a trained network, with pictures
	$(BIN)/fgbg-compose data/demo --synthetic --sets 4000 --seed 0
	$(BIN)/fgbg-pack data/demo --shards shards/demo
	$(BIN)/fgbg-train --shards shards/demo --out runs/demo

test check: $(ENV)  ## every check: style, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

fix: $(ENV)  ## format the code and mend what can be mended by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(ENV)  ## loader throughput beside its peers
	test -d shards/demo || ($(BIN)/fgbg-compose data/demo --synthetic --sets 4000 --seed 0 && $(BIN)/fgbg-pack data/demo --shards shards/demo)
	$(BIN)/fgbg-bench --shards shards/demo

clean:  ## remove what the commands above made, the environment too
	rm -rf .venv data/demo shards/demo runs/demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(ENV): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
