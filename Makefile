# `make demo` and `make test` set up a virtual environment first; both work on a fresh Debian or Ubuntu machine.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := $(shell grep -m1 '^torch==' requirements.lock)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: setup demo test lint bench compare-bonito stubs lock

setup: $(VENV)/.ready
