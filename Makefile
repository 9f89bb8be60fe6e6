# From a fresh clone to a trained model: `make train`. What else there is: `make help`.
# Needs Python 3.11 or later and, for the native operators, a C++17 compiler. Everything is installed into .venv.

PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.ready
SOURCES := pyproject.toml setup.py constraints.txt medsora_ops/version.py $(shell find csrc -type f -not -path 'csrc/sanitize/*')
PIP    := $(RUN) -m pip --disable-pip-version-check --quiet
ARGS   ?=

.PHONY: help setup train test test-full test-gpu-offline test-gpu bench bench-report bench-compare bench-gpu
.PHONY: test-gpu-interpreted test-gpu-compiled bench-gpu-operators bench-gpu-models sanitize lint format clean
.DEFAULT_GOAL := help

help:  ## print this list
	@echo "make <target>, where <target> is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-19s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv, install everything, build the native operators (the other targets do it too)

train: $(READY)  ## train on built-in real data, sample, and say where the results are; ARGS="..." is passed on
	@$(RUN) -m medsora.train $(ARGS)

# In two processes, as most of a test keeps one core busy; with a thread each, for idle threads of one would spin while
# the other works. Tests of several threads ask for them.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q --durations=15 -n 2
# The Triton kernels run in Triton's interpreter, which a process either is or is not. 5: ARGS chose no test of these.
INTERPRETED := TRITON_INTERPRET=1 $(PYTEST) tests/triton
# The tests of a file share models and what was compiled, so one process takes them all. Not the files with many tests
# first: those with few are slow, and the last of them would be waited for.
OTHERS := $(PYTEST) --dist loadfile --no-loadscope-reorder

test: $(READY)  ## run the tests, large case spaces sampled with a fixed seed
	@$(INTERPRETED) $(ARGS) || test $$? -eq 5
	@$(OTHERS) $(ARGS)

test-full: $(READY)  ## run the tests over all cases
	@MEDSORA_TEST_FULL=1 $(INTERPRETED) $(ARGS) || test $$? -eq 5
	@MEDSORA_TEST_FULL=1 $(OTHERS) $(ARGS)

# Side by side, as what the compilers leave of the cores the interpreter takes.
OLDEST_TRITON := 3.6.0
test-gpu-offline: $(READY)  ## check the GPU kernels without a GPU: all cases interpreted, all compiled for several chips
	@$(MAKE) --no-print-directory -j2 test-gpu-interpreted test-gpu-compiled

test-gpu-interpreted: $(READY)
	@MEDSORA_TEST_FULL=1 $(INTERPRETED) $(ARGS)

# By the triton that is installed and by the oldest that is supported.
test-gpu-compiled: $(READY)
	@test -d build/triton-$(OLDEST_TRITON) || $(PIP) install --no-deps --target build/triton-$(OLDEST_TRITON) triton==$(OLDEST_TRITON)
	@for found in "" build/triton-$(OLDEST_TRITON); do PYTHONPATH=$$found $(RUN) -W ignore -m medsora_ops.offline \
	  --dtypes bfloat16 float16 float32 || exit 1; \
	  PYTHONPATH=$$found $(RUN) -W ignore -m medsora_ops.offline --rare || exit 1; \
	  PYTHONPATH=$$found $(RUN) -W ignore -m medsora_ops.offline --sizes 32x16 128x256 256x256 || exit 1; done
	@$(RUN) -W ignore -m medsora_ops.offline --targets hip:gfx942 || echo "AMD: best effort"

# On the machine with the GPU no .venv is made: a Python with torch, triton, pytest and hypothesis is enough. With
# pytest-xdist there too the tests run side by side, as compiling takes most of their time.
GPU_PYTHON ?= python3
# Without torch's cache each tensor is an allocation of its own, whose end the sanitizer knows.
MEMCHECKED ?= half_types or any_strides or (chain and several_chunks)
# Hazards between threads in shared memory, of which only the kernels in CUDA C++ take care themselves.
RACECHECKED ?= zero_weight or equal_images or same_bits
test-gpu:  ## test the kernels on a GPU, a few of them again under compute-sanitizer if it is on the PATH
	@$(GPU_PYTHON) -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null \
	  || { echo "make test-gpu: $(GPU_PYTHON) has no torch that sees a GPU" >&2; exit 2; }
	@if command -v nvcc >/dev/null && $(GPU_PYTHON) -c 'import pybind11, setuptools.modified' 2>/dev/null; \
	then MEDSORA_CUDA=1 $(GPU_PYTHON) setup.py -q build_ext --inplace; \
	else echo "no nvcc, pybind11 or setuptools: only the Triton kernels are tested, and CUDA C++ that was built before"; fi
	@workers=$$($(GPU_PYTHON) -c 'import os, xdist; print("-n", min(8, os.cpu_count()))' 2>/dev/null); \
	$${workers:+env OMP_NUM_THREADS=1} $(GPU_PYTHON) -m pytest -q $$workers --durations=10 tests/triton \
	  tests/ops/test_cuda_reorder.py tests/ops/test_cuda_spectral.py $(ARGS)
	@if command -v compute-sanitizer >/dev/null; then \
	  echo "again under compute-sanitizer: $(MEMCHECKED)"; \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
	    $(GPU_PYTHON) -m pytest -q tests/triton tests/ops/test_cuda_reorder.py tests/ops/test_cuda_spectral.py \
	    -k "$(MEMCHECKED)" && \
	  echo "and for races: $(RACECHECKED)" && \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool racecheck --error-exitcode 9 \
	    $(GPU_PYTHON) -m pytest -q tests/ops/test_cuda_spectral.py -k "$(RACECHECKED)"; \
	else echo "compute-sanitizer is not on the PATH: no accesses checked"; fi

bench: $(READY)  ## time operators against floors, layers and models against attention, under 10 minutes; ARGS="--record NAME" keeps the results
	@$(RUN) -m pytest -q benchmarks --benchmark-only --benchmark-quiet $(ARGS)

bench-report: $(READY)  ## pictures and a page of the recorded benchmarks, to build/benchmark-report
	@$(RUN) -m benchmarks.report $(ARGS)

bench-compare: $(READY)  ## what got slower since BASE=revision, by turns with it; ARGS="-k native" chooses
	@test -n "$(BASE)" || { echo "make bench-compare: got no BASE, wants one such as BASE=main" >&2; exit 2; }
	@$(RUN) -m benchmarks.revisions $(BASE) $(ARGS)

# The scans have a programme of their own.
bench-gpu:  ## time path_scan on a GPU against floors and peers in 8 minutes (ARGS="--quick", or "--help")
	@$(GPU_PYTHON) -m benchmarks.gpu_scan $(ARGS)

# As on a CPU, beside plain PyTorch, torch.fft and the published loss. Needs pytest-benchmark.
bench-gpu-operators:  ## time the other operators on a GPU, some 8 minutes
	@$(GPU_PYTHON) -m pytest -q benchmarks/test_operators.py --benchmark-only --benchmark-quiet --device cuda \
	  -k "gather or merge or spectral or focal or ssd_scan" --record gpu-operators $(ARGS)

bench-gpu-models: $(READY)  ## time layers and models on a GPU beside attention; needs the whole installation, unlike bench-gpu
	@$(RUN) -m pytest -q benchmarks/test_layers.py benchmarks/test_models.py --benchmark-only --benchmark-quiet \
	  --device cuda --full --record gpu-layers-models $(ARGS)

sanitize: build/sanitize/check  ## run the native operators, no Python around them, under GCC's or clang's sanitizers
	@build/sanitize/check $(ARGS)

lint: $(READY)  ## check style and formatting
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

format: $(READY)  ## rewrite the sources in the project's format
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

clean:  ## remove .venv and what the build left
	rm -rf $(VENV) build dist *.egg-info medsora_ops/*.so

# The set-up is done again only when something it was made from has changed.
# A torch that the system's Python already has is used as it is; otherwise the constrained version is installed.
$(READY): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "$(PYTHON) is missing or older than Python 3.11: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "$(PYTHON) cannot create environments: install the package python3-venv" >&2; exit 1; }
	@if test ! -x $(RUN); then \
	  if $(PYTHON) -c 'import torch' 2>/dev/null; then shared=--system-site-packages; fi; \
	  echo "creating $(VENV)"; $(PYTHON) -m venv $$shared $(VENV) \
	    || { echo "could not create $(VENV)" >&2; rm -rf $(VENV); exit 1; }; \
	fi
	@found=$$($(RUN) -c 'import torch; print(torch.__version__)' 2>/dev/null | grep -E '^2\.(1[1-9]|[2-9][0-9])\.'); \
	if test -n "$$found"; then \
	  echo "using torch $$found"; \
	  { grep -v -E '^(torch|triton)==' constraints.txt; echo "torch==$$found"; } > $(VENV)/constraints.txt; \
	else \
	  cp constraints.txt $(VENV)/constraints.txt; \
	fi
	@echo "installing medsora and what it needs into $(VENV) (about a minute and a half the first time)"
	@{ $(RUN) -c 'import setuptools, pybind11' 2>/dev/null \
	     || $(PIP) install -c $(VENV)/constraints.txt setuptools pybind11; } \
	  && $(PIP) install --no-build-isolation -c $(VENV)/constraints.txt -e ".[test]" \
	  || { echo "The set-up did not succeed; the lines above say why. Running make again goes on from here." >&2; exit 1; }
	@$(RUN) -c 'from medsora_ops import native; why, cuda = native.unavailable(), native.build_info().get("cuda"); \
	  print("native operators:", f"{why} (make -B setup)" if why else "built, " + (f"with CUDA {cuda}" if cuda else \
	  "without CUDA (no nvcc, or MEDSORA_CUDA=0)"))'
	@touch $@

# Every access outside memory and every undefined operation ends the program; see csrc/sanitize. One warning is off, which
# GCC gives for its own immintrin.h.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1 -fopenmp
CHECKED  := $(patsubst csrc/%.cpp,build/sanitize/%.o,$(wildcard csrc/cpu/*.cpp csrc/sanitize/*.cpp))

build/sanitize/check: $(CHECKED)
	@$(CXX) $(SANITIZE) $^ -o $@

build/sanitize/%.o: csrc/%.cpp Makefile
	@mkdir -p $(@D)
	@echo "compiling $<"
	@$(CXX) -std=c++17 -Wall -Wextra -Wno-maybe-uninitialized $(SANITIZE) -MMD -MP -c $< -o $@

-include $(CHECKED:.o=.d)
