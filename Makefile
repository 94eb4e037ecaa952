# Two commands do all the set-up: `make demo` and `make test`.
#
#   VENV=DIR     the virtual environment to use or create (default .venv)
#   PYTHON=EXE   the Python that creates it (default python3)
#   TORCH=REQ    what to install where torch is missing, e.g. TORCH="torch==2.13.0" (default torch)
#   CUDA=1          with CUDA kernels, or an error that says what is missing; `make demo CUDA=1` runs on the GPU
#   DEMO_ARGS="..." PYTEST_ARGS="..." RESULTS_ARGS="..."   passed on to `resgrow fit`, pytest, `resgrow experiment`
#   QUICK=1         `make results` in minutes rather than a night, into results/quick

VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch
override PY := $(abspath $(VENV))/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

NATIVE := setup.py setup_cuda.py pyproject.toml $(shell find csrc -type f 2>/dev/null)
CXX_FILES = $$(git ls-files '*.cpp' '*.h' '*.inc' '*.cu' '*.cuh')

# A build that was asked to have CUDA kernels serves where that is not asked, too.
ifeq ($(CUDA),1)
BUILT := $(VENV)/.built-cuda
DEVICE := --device cuda
else
BUILT := $(VENV)/.built
endif

.PHONY: demo test bench results lint format clean

demo: $(BUILT)
	$(PY) -m resgrow fit --data digits --model resnet8 --budget params=0.1 $(DEVICE) $(DEMO_ARGS)

test: $(BUILT) $(VENV)/.test
	$(PY) -m pytest $(PYTEST_ARGS)

bench: $(BUILT) $(VENV)/.test
	$(PY) -m pytest benchmarks --override-ini "python_files=bench_*.py" --benchmark-columns=median,iqr,rounds \
		--benchmark-group-by=group --benchmark-disable-gc -p no:cacheprovider -q -s

# Goes on where it was stopped. docs/results.md tells of full runs alone.
results: $(BUILT) $(VENV)/.experiments
	$(PY) -m resgrow experiment all $(if $(QUICK),--quick --book results/quick/results.md,--book docs/results.md) \
		$(RESULTS_ARGS)

lint: $(VENV)/.lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(dir $(PY))clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(dir $(PY))clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist *.egg-info resgrow/*.so

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "resgrow needs Python 3.10 or newer; name one with PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	touch $@

# Build tools and torch come first: the extension is compiled against the torch it will run with,
# which an isolated build would not see.
$(VENV)/.built $(VENV)/.built-cuda: $(VENV)/.created $(NATIVE)
	$(PIP) --upgrade pip "setuptools>=77" wheel "ninja>=1.11" "pybind11>=2.13"
	$(PY) -c 'import torch' 2>/dev/null || $(PIP) "$(TORCH)"
	$(if $(findstring cuda,$(@F)),RESGROW_CUDA=1) $(PIP) --no-build-isolation --editable .
	touch $@ $(VENV)/.built

# The packages of an extra alone: `pip install ".[test]"` would compile the extension once more.
extra = $$($(PY) -c 'from importlib.metadata import requires; \
	print(*(r.partition(";")[0].replace(" ", "") for r in requires("resgrow") if "$(1)" in r.partition(";")[2]))')

$(VENV)/.test $(VENV)/.lint $(VENV)/.models $(VENV)/.experiments: $(VENV)/.%: $(BUILT)
	$(PIP) $(call extra,$*)
	touch $@
