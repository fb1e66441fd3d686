#!/usr/bin/env bash
# scipy 1.11.1: connected components of a sparse array with 64-bit indices are 0 in number, each node's label -9999, no error.
#
# Guessed: as for `coo_matrix`, whose 64-bit indices are made 32-bit ones where they fit, an answer; or a TypeError.
# Seen with scipy 1.11.1 and numpy 1.26.4: `connected_components(coo_array(…))` of int64 coordinates prints "Exception
#   ignored … Buffer dtype mismatch" on standard error and returns (0, [-9999, …]), memory as it was before the search.
#   `coo_matrix` of the same coordinates, and `coo_array` of int32 ones, give (2, [0, 1, 0, 1]). scipy 1.11.4 and 1.16.3 answer all.
# Why it matters: what has to be cut together is found as connected components of axis positions; with one label for all of
#   them every channel of a model is one unit, and nothing says that the search has failed.
# fairkern: hands over 32-bit indices (tests/axes/test_facts.py, under scipy 1.11.1 in `python -m bench.matrix oldest`).
#
# Installs scipy in a temporary folder, runs it, and fails where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
for pins in "scipy==1.11.1 numpy==1.26.4" "scipy==1.11.4 numpy==1.26.4" "scipy==1.16.3 numpy==2.3.5"; do
  # shellcheck disable=SC2086
  "$place/venv/bin/pip" install --quiet --disable-pip-version-check $pins
  "$place/venv/bin/python" - <<'PYTHON'
import numpy as np
import scipy
from scipy.sparse import coo_array, coo_matrix
from scipy.sparse.csgraph import connected_components


def found(kind, dtype):
    ends = np.array([0, 1], dtype=dtype), np.array([2, 3], dtype=dtype)
    count, labels = connected_components(kind((np.ones(2, dtype=np.int8), ends), shape=(4, 4)), directed=False)
    return count, labels.tolist()


answer, none = (2, [0, 1, 0, 1]), (0, [-9999] * 4)
said = {f"{k.__name__} {d.__name__}": found(k, d) for k in (coo_matrix, coo_array) for d in (np.int32, np.int64)}
print(scipy.__version__, said)
old = scipy.__version__ == "1.11.1"
assert said == dict.fromkeys(said, answer) | {"coo_array int64": none if old else answer}, said
PYTHON
done
