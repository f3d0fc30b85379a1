# One line each: `make` lists them. The first that needs it makes .venv; later ones only when the pins change.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# A moved clone has another stamp, since an editable install remembers its folder.
STAMP := $(VENV)/installed-$(shell pwd -P | cksum | cut -d' ' -f1)
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(PY) -m pip
# Small matrices: with one thread per process, two processes do not fight for two cores.
TEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -n 2

# Every warning is an error, broken links and anchors among them. The generator itself needs a newer Python than we do.
SITE = if $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then OMP_NUM_THREADS=1 $(PY) -m sphinx \
	--fail-on-warning --keep-going --fresh-env --quiet docs build/docs; \
	else echo "The site needs Python 3.11 or newer and was not built." >&2; fi

.PHONY: help setup demo hero picture quick test test-ray fuzz comfyui check format lint types docs docs-check family bench clean
.DEFAULT_GOAL := help

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(STAMP)  ## Make .venv with everything that development needs

$(STAMP): pyproject.toml lab/pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "loraport needs Python 3.10 or newer, and there is no $(PYTHON): sudo apt-get install python3 python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "loraport needs Python 3.10 or newer, and $(PYTHON) is $$("$(PYTHON)" --version 2>&1); name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: sudo apt-get install python3-venv" >&2; exit 1; }
	@$(PY) -c '' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "Installing into $(VENV) (PyTorch is large; the first time takes minutes)"
	@$(PIP) install --quiet --progress-bar off --editable ".[dev]" --editable ./lab --constraint constraints.txt
	@rm -f $(VENV)/installed-* && touch $(STAMP)

demo: setup  ## Transfer a LoRA inside the embedded family and write a page: demo/
	@$(PY) -m loraport demo -o demo

hero: demo  ## The demo's pictures into the README and the documentation
	@cp demo/hero.png docs/_static/demo.png
	@cp demo/hero.webp docs/_static/demo.webp

picture: setup  ## The web page's picture into the documentation
	@HF_HUB_OFFLINE=1 $(PY) -m tests.app.picture docs/_static/web-page.png

quick: setup  ## The tests that take a moment each: what one runs while editing
	@$(TEST) -m "not slow"

test: setup  ## The whole test suite
	@$(TEST)

test-ray: setup  ## The cards of a real Ray cluster, a machine of which is removed; puts Ray into .venv first
	@$(PIP) install --quiet --progress-bar off --editable ".[ray]" --constraint constraints.txt
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -n 0 tests/workers/test_on_ray.py

fuzz: setup  ## Attack every reader and the command line, kill every writer and workers; by hand make fuzz CASES=10000 KILLS=500 WORKER_KILLS=100 SEED=7
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -W ignore -m tests.fuzz --cases $(or $(CASES),150) --kills $(or $(KILLS),40) --seed $(or $(SEED),0)
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -W ignore -m tests.fuzz.worker_kills --kills $(or $(WORKER_KILLS),3) --loras 24 --seed $(or $(SEED),0)

comfyui: setup  ## The nodes in ComfyUI itself: make comfyui COMFYUI=/path/to/ComfyUI (and COMFYUI_PYTHON, if it has its own)
	@test -f "$(COMFYUI)/main.py" || { echo "COMFYUI names no checkout: make comfyui COMFYUI=/path/to/ComfyUI" >&2; exit 2; }
	@COMFYUI="$(COMFYUI)" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -n 0 tests/comfyui

check: setup lint types docs-check test fuzz  ## What CI runs: format, lint, types, docs, tests, a minute of attacks

lint: setup
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

types: setup
	@$(PY) -m mypy

docs-check: setup
	@$(PY) docs/generate.py --check
	@$(SITE)

docs: setup  ## Write the pages that are made from the program again, and build the site into build/docs
	@$(PY) docs/generate.py
	@$(SITE)
	@for page in build/docs/index.html; do [ ! -f $$page ] || echo "Open $$(pwd -P)/$$page in a browser."; done

format: setup  ## Format, and mend what ruff can mend
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

family: setup  ## Train the embedded family again, into results/family; started again, it continues
	@$(PY) -m loraport_lab.training.train --out results/family --jobs 2

bench: setup  ## Time, memory and disk at real layer sizes, beside the published code where PUBLISHED=its checkout
	@$(PY) -m benchmarks.suite results/bench $(if $(PUBLISHED),--published $(PUBLISHED)) --growth 256

clean:  ## Remove .venv and everything that was made here, except results/
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
