"""Before torch is imported: threads that wait for each other sleep.

OpenMP lets them spin, and where two processes share the cores, most of the time goes into that: tests of small networks
take several times as long. Benchmarks, which run alone, keep what OpenMP does by itself.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
