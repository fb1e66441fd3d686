#!/usr/bin/env bash
# Everything about a GPU in seven minutes, on a machine that has torch, Triton, nvcc, pybind11, setuptools and pytest:
#   bench/gpu/run.sh OUT            builds, compiles kernels, tests, measures, tunes; files go to the folder OUT
#   bench/gpu/run.sh OUT --rehearse the same steps on the CPU, small
# OUT may also come as an environment variable, and the interpreter as PYTHON. `--help` says what else there is.
# It ends with 0: all done, 1: something is wrong, 2: nothing could be run, 3: the clock ended it before all was done.
set -euo pipefail
began=$(date +%s)
here=$PWD
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m bench.gpu.suite --began "$began" --here "$here" "$@"
