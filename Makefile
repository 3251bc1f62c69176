# make demo | test | lint | bench | trust | clean      (needs git, make and Python 3.10 or newer; nothing else)
#
# The first of them makes .venv with the packages of constraints.txt. Another Python:      make test PYTHON=python3.12
# Another build of PyTorch, here the small one without CUDA for Linux:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# Only some tests, or more processes at a time (each takes up to 2 GB):      make test PYTEST_ARGS="-m 'not slow'" JOBS=4

PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
JOBS ?= 2
DEMO_OUTPUT ?= demo-output

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
READY := $(VENV)/ready.stamp
PIP_INSTALL := $(VENV_PYTHON) -m pip install -q --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench trust studies clean distclean

help:
	@echo "make demo    explain a network on a sample volume; the results go to $(DEMO_OUTPUT)/"
	@echo "make test    run the tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   measure time, memory and exactness against other libraries"
	@echo "make trust   measure the methods against a truth that is known (half an hour)"
	@echo "make studies run the five published systems into build/studies (about an hour)"
	@echo "make clean   remove what these made (make distclean: $(VENV) too)"

demo: $(READY)
	$(VENV_PYTHON) -m SaliencyExplainLib demo --output $(DEMO_OUTPUT)

test: $(READY)
	$(VENV_PYTHON) -m pytest -q -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(READY)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy

bench: $(READY)
	$(VENV_PYTHON) Testing/Benchmarks/run.py

trust: $(READY)
	$(VENV_PYTHON) Testing/Benchmarks/trust.py --cases 30

# The pages and figures of docs/studies come from here.
studies: $(READY)
	for name in samask_regression background_removal probability_maps kernel_weighted_contribution attention_vs_baseline; do \
	  $(VENV_PYTHON) -m SaliencyExplainLib study $$name --output build/studies/$$name --scene || exit 1; \
	done

clean:
	rm -rf build dist *.egg-info $(DEMO_OUTPUT) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find SaliencyExplain SaliencyExplainLib Testing -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# torch goes first and alone: asked for together with the rest, pip may choose a build with gigabytes of CUDA packages.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "Python was not found under the name '$(PYTHON)'. Say which one to use: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "SaliencyExplain needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Say which one to use: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	@test -x $(VENV_PYTHON) || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv $(VENV)' failed (see above; Debian and Ubuntu: apt install python3-venv)." >&2; \
	  exit 1; }
	@echo "Installing the packages of constraints.txt into $(VENV) (some minutes the first time)."
	$(PIP_INSTALL) -c constraints.txt $(TORCH)
	$(PIP_INSTALL) -c constraints.txt -e '.[test,demo]'
	$(PIP_INSTALL) -c constraints.txt --no-deps dynamic-network-architectures
	@touch $@
