#!/bin/sh
# Measure the GPU tier of baseline/train.py; without a GPU it says that it was skipped. Options: benchmarks/gpu.sh --help
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"
