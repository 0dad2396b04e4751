# Each target sets itself up in .venv and installs nothing a second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export JAX_PLATFORMS ?= cpu

.PHONY: demo test test-all test-latest torture interop lint bench tpu-check notebooks docs clean

demo: $(VENV)/.demo
	$(BIN)/ved read examples/*.png

# Tiny models take longer to optimise than to run; test-all compiles them as users do.
test test-latest: export XLA_FLAGS = --xla_backend_optimization_level=0

test: lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: lint
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Attacks on what reads files and on what writes them: TORTURE="--only bit_flips --seed 7" for some of them.
TORTURE ?=
torture: export XLA_FLAGS = --xla_backend_optimization_level=0
torture: $(VENV)/.test
	$(BIN)/python -m tests.torture $(TORTURE)

# Speed beside transformers and ONNX Runtime, then beam search's cache and conversion. ROWS="greedy trocr" measures less.
ONNX := .venv-onnx
ROWS ?=
bench: $(VENV)/.test
	@$(MAKE) --no-print-directory $(ONNX)/.done || echo "ONNX Runtime cannot be installed here: it is left out"
	$(BIN)/python -m benchmarks.speed --write $(if $(ROWS),--only $(ROWS))
	$(BIN)/python -m tests.support_matrix
	$(BIN)/python benchmarks/beams.py
	$(BIN)/python benchmarks/conversion.py || true
	$(BIN)/python -m benchmarks.serving

$(ONNX)/.done: benchmarks/requirements-onnx.txt
	$(PYTHON) -m venv $(ONNX)
	$(ONNX)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements-onnx.txt
	@touch $@

# Runs the notebooks and keeps what they show.
notebooks: $(VENV)/.test
	$(BIN)/python notebooks/run.py

# The pages of docs/ and an API reference from the docstrings, into site/.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(VENV)/.docs: $(VENV)/.test
	$(INSTALL) -c constraints.txt -e ".[docs]"
	@touch $@

# What programs cost on TPUs, by their compiler, which lies in a folder of its own: no TPU is needed. ONLY="ViT-GPT2
# train" compiles less: a train step takes minutes.
LIBTPU := .venv-tpu
PEER := .venv-peer
ONLY ?=
tpu-check: export PYTHONPATH := $(CURDIR)/$(LIBTPU)
tpu-check: $(LIBTPU)/.done
	@$(MAKE) $(PEER)/.done || echo "transformers 4.48.3 cannot be installed: its rows are left out"
	$(if $(wildcard $(PEER)/.done),PEER_PYTHON=$(CURDIR)/$(PEER)/bin/python) $(BIN)/python -m benchmarks.tpu --write \
	  $(if $(ONLY),--only $(ONLY))
	$(BIN)/python -m tests.support_matrix

$(LIBTPU)/.done: $(VENV)/.test
	$(INSTALL) --no-deps --upgrade --target $(LIBTPU) "$$($(BIN)/python -m ved_flax.aot.topology)"
	@touch $@

# The last transformers that has a Flax class, to be compared with on the same compiler.
$(PEER)/.done: benchmarks/peer/requirements.txt
	$(PYTHON) -m venv $(PEER)
	PYTHONPATH= $(PEER)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The Flax side under a newer Python with the newest jax and flax: no constraints, no torch.
PYTHON_LATEST ?= $(shell sh -c 'command -v python3.13 && python3.13 -V' >/dev/null 2>&1 && echo python3.13 || \
	ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.13*/bin/python 2>/dev/null | tail -n 1)
LATEST := .venv-latest
test-latest: $(LATEST)/.test
	$(LATEST)/bin/python -m pytest -n 2 -m "not slow"

# What we write, loaded by the last transformers that has Flax and TensorFlow classes.
INTEROP := .venv-interop
interop: $(INTEROP)/.done $(VENV)/.test
	INTEROP_PYTHON=$(CURDIR)/$(INTEROP)/bin/python $(BIN)/python -m pytest tests/test_interop.py

$(INTEROP)/.done: tests/interop/requirements.txt
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/interop/requirements.txt
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -c constraints.txt -e ".[test-torch]"
	@touch $@ $(VENV)/.demo

$(LATEST)/.test: pyproject.toml
	@test -n "$(PYTHON_LATEST)" || { echo "no Python 3.13 found: make test-latest PYTHON_LATEST=/path/to/python3.13"; exit 1; }
	$(PYTHON_LATEST) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[train,test]"
	@touch $@

clean:
	rm -rf $(VENV) $(LATEST) $(INTEROP) $(LIBTPU) $(PEER) $(ONNX) build site *.egg-info
