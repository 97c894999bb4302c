# `make demo` and `make test` set everything up first: a virtual environment in .venv and, on Debian and Ubuntu, the
# system packages that it needs. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_VERSION := $(shell sed -n 's/^torch==//p' requirements.lock)
# Where to get the CPU build of torch. PyPI's own build for Linux includes CUDA.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DATA ?= ../shared/data
# gpu-check has its own environment, with PyPI's torch, which includes CUDA (or from GPU_INDEX), and CuPy for CUDA 12 or 13.
GPU_VENV ?= .gpu-venv
GPU_KIT ?= gpu-kit
GPU_INDEX ?=
CUDA ?= 13

.PHONY: help system setup demo test test-long ops-check ops-system lint format bench compare-bonito compare-readfish compare-remora attack chaos soak record-calling gpu-kit gpu-check docs stubs lock clean

help:
	@echo 'make demo            install, then simulate a small run, call and align it, and compare with the truth'
	@echo 'make test            install, then run the tests'
	@echo 'make test-long       faults by the hundred, thousands of reads, attacks, benchmarks in brief; part of .ci/run'
	@echo 'make ops-check       test metrics, rules, dashboards, status page, image and manifests with a real Prometheus and browser'
	@echo 'make lint            run ruff and mypy, and check Markdown, spelling, the import rules and the wire contract'
	@echo 'make format          format code and Markdown'
	@echo 'make bench           measure speed and memory, and print Markdown tables'
	@echo "make compare-bonito  compare scores and speed with bonito's own modules, in a separate environment"
	@echo "make compare-readfish  compare decisions of adaptive sampling with readfish's own, in a separate environment"
	@echo "make compare-remora  check that Remora can read our move tables, in a separate environment"
	@echo 'make attack          attack a server with hostile peers and measure an honest stream, memory and health checks'
	@echo 'make chaos           inject 1,000 random faults while calling; check for lost or duplicate reads and correct counts'
	@echo 'make soak            call for an hour over connections that keep breaking; check that memory does not grow'
	@echo 'make record-calling  record the digests for a new calling revision'
	@echo 'make gpu-kit         make the folder with which benchmarks/gpu_first.py checks a GPU, without a network if need be'
	@echo 'make gpu-check       on a machine with an NVIDIA GPU: make the kit, then compare kernels, networks and bases; measure'
	@echo 'make docs            generate docs/use/cli.md, docs/operate/metrics.md, the dashboards and the PrometheusRule from code'
	@echo 'make stubs           generate the stubs of the wire contract'
	@echo 'make lock            pin the newest versions that pyproject.toml allows'

# mappy is built from source, so it needs a C compiler and the headers of zlib and Python.
system:
	@missing=(); \
	command -v gcc >/dev/null || missing+=(gcc libc6-dev); \
	command -v g++ >/dev/null || missing+=(g++); \
	[ -e /usr/include/zlib.h ] || missing+=(zlib1g-dev); \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv); \
	$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null \
		|| missing+=(python3-dev); \
	command -v samtools >/dev/null || missing+=(samtools); \
	if [ $${#missing[@]} -gt 0 ]; then \
		install="apt-get install -y --no-install-recommends $${missing[*]}"; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && $$install; \
		else echo "missing system packages; please run: sudo $$install" >&2; exit 1; fi; \
	fi

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml requirements.lock | system
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null \
		|| $(PIP) install -q --extra-index-url $(TORCH_INDEX) 'torch==$(TORCH_VERSION)+cpu' \
		|| { echo 'cannot find a CPU build of torch; installing the default build' >&2; \
		     $(PIP) install -q 'torch==$(TORCH_VERSION)'; }
	$(PIP) install -q -c requirements.lock -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/porestream demo -o demo

# Tests that start and kill whole servers run alone. PYTEST_ARGS replaces both runs with one that has these arguments.
# One more than cores, because some tests wait for a clock or a server.
TEST_PROCESSES = $(shell cores=$$(nproc); echo $$(( cores < 8 ? cores + 1 : 8 )))

test: setup
ifdef PYTEST_ARGS
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --ignore tests/end_to_end --ignore tests/long --ignore tests/ops
	$(BIN)/python -m pytest tests/end_to_end
endif

# What takes long: faults by the hundred, thousands of reads, attacks, each benchmark's quick form, the GPU's rehearsal.
test-long: setup
	$(BIN)/python -m pytest tests/long

# What an ops team works with, tested with a real Prometheus, browser and manifests. `make test` needs none of these.
ops-check: setup ops-system
	$(BIN)/python -m pytest tests/ops

ops-system:
	@missing=(); \
	command -v prometheus >/dev/null && command -v promtool >/dev/null || missing+=(prometheus); \
	command -v chromium >/dev/null || missing+=(chromium); \
	command -v chromedriver >/dev/null || missing+=(chromium-driver); \
	if [ $${#missing[@]} -gt 0 ]; then \
		install="apt-get install -y --no-install-recommends $${missing[*]}"; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && $$install; \
		else echo "missing system packages; please run: sudo $$install" >&2; exit 1; fi; \
	fi

# Without the pages that `make docs` makes.
MARKDOWN = $$(git ls-files '*.md' | grep -vE 'docs/(use/cli|operate/metrics|inside/imports)\.md')
SPELLED = $$(git ls-files | grep -vE '\.(lock|json|svg|png|safetensors|pt|csv)$$')
MDFORMAT = $(BIN)/mdformat --wrap 120 --number --compact-tables

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MDFORMAT) --check $(MARKDOWN)
	$(BIN)/codespell $(SPELLED)
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint

format: setup
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .
	$(MDFORMAT) $(MARKDOWN)

bench: setup
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 PYTHON=$(PYTHON) TORCH_VERSION=$(TORCH_VERSION) \
		$(BIN)/python benchmarks/run.py --data $(DATA)
	$(BIN)/python benchmarks/alignment.py --count 1000

compare-bonito: setup
	PYTHON=$(PYTHON) TORCH_VERSION=$(TORCH_VERSION) $(BIN)/python benchmarks/compare_bonito.py --data $(DATA)

# readfish itself, without ONT's client library, in an environment of its own.
compare-readfish: setup
	[ -x .readfish-venv/bin/python ] || { $(PYTHON) -m venv .readfish-venv; \
		.readfish-venv/bin/pip install -q cattrs rtoml attrs numpy packaging more-itertools 'minknow-api>=6.2,<7'; \
		.readfish-venv/bin/pip install -q --no-deps readfish==2024.3.0 readfish-summarise; }
	$(BIN)/python benchmarks/compare_readfish.py --python .readfish-venv/bin/python $(ARGS)

compare-remora: setup
	PYTHON=$(PYTHON) TORCH_VERSION=$(TORCH_VERSION) $(BIN)/python benchmarks/compare_remora.py --record --data $(DATA)

# ARGS: more flags, for example '--seed 1 --run 17' to repeat one run.
# The second command tests hostile files. Both run on this machine alone.
attack: setup
	$(BIN)/python benchmarks/attack.py $(ARGS)
	$(BIN)/python -m pytest -q tests/models/test_hostile.py tests/kernels/test_hostile_index.py tests/cli/test_hostile.py \
		tests/cli/test_planted_links.py tests/client/test_distrust.py tests/client/test_remade.py tests/server/test_bad_messages.py

chaos: setup
	$(BIN)/python benchmarks/chaos.py --faults 1000 $(ARGS)

soak: setup
	$(BIN)/python benchmarks/soak.py --minutes 60 --load 0.7 $(ARGS)

# Run this after raising CALLING_REVISION. It records digests for this kind of machine only; run it on each other kind too.
record-calling: setup
	RECORD_CALLING=1 $(BIN)/python -m pytest -n0 tests/server/test_revision.py tests/cli/test_demo.py

# What benchmarks/gpu_first.py compares a GPU with. WHEELS=python3.12: also wheels for that Python, for a GPU's machine
# without a network.
gpu-kit: setup
	$(BIN)/python benchmarks/gpu_kit.py $(GPU_KIT) $(if $(WHEELS),--wheels $(WHEELS))

gpu-check:
	@nvidia-smi -L >/dev/null 2>&1 || { \
		echo 'nvidia-smi finds no GPU. On a machine with one, gpu-check installs PyTorch with CUDA into $(GPU_VENV),' >&2; \
		echo 'makes a kit of golden results on the CPU, and runs all steps of benchmarks/gpu_first.py: kernels, networks,' >&2; \
		echo 'aligner, calls and their speed, compute-sanitizer, real reads, tests/gpu; report: gpu-report.md.' >&2; exit 2; }
	$(MAKE) $(GPU_VENV)/.ready
	$(GPU_VENV)/bin/python benchmarks/gpu_kit.py $(GPU_KIT)
	$(GPU_VENV)/bin/python benchmarks/gpu_first.py --kit $(GPU_KIT) --all --data $(DATA)

$(GPU_VENV)/.ready: pyproject.toml requirements.lock | system
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install -q $(if $(GPU_INDEX),--extra-index-url $(GPU_INDEX)) 'torch==$(TORCH_VERSION)'
	$(GPU_VENV)/bin/python -m pip install -q -c requirements.lock -e '.[dev,gpu$(CUDA)]'
	touch $@

# The files that are generated from code.
docs: setup
	$(BIN)/python -m porestream.cli.help_pages > docs/use/cli.md
	$(BIN)/python -m porestream.server.metrics > docs/operate/metrics.md
	$(BIN)/python deploy/grafana/dashboards.py
	$(BIN)/python deploy/kubernetes/prometheus_rule.py
	$(BIN)/python docs/images/road.py
	$(BIN)/python docs/images/imports.py

stubs: setup
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto \
		porestream/v1/porestream.proto

lock:
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/pip install -q $(if $(TORCH_VERSION),'torch==$(TORCH_VERSION)') && .lock-venv/bin/pip install -q -e '.[dev]'
	{ echo '# Versions that were tested together: a constraints file for pip (-c). Made by `make lock`.'; \
	  .lock-venv/bin/pip freeze --all --exclude-editable | grep -vE '^(pip|porestream)\b' | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf .lock-venv

clean:
	rm -rf $(VENV) .lock-venv .bonito-venv .remora-venv $(GPU_VENV) build dist demo src/*.egg-info
