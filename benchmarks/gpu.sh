#!/bin/sh
# Measure the GPU tier of baseline/train.py; without a GPU it says that it was skipped. Options: benchmarks/gpu.sh --help
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || PYTHON="${PYTHON:-python3}" # torch and numpy are all that it needs
exec "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"
