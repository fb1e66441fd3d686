"""A folder of transformers, pruned by two processes: one of them writes what a single one would have written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks import cases
from tests.ranks.processes import Processes
from tests.ranks.test_stages import assert_same

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow  # every process imports transformers


def test_two_processes_write_one_folder(processes: Processes, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    ((whole, said),) = processes.run(cases.folder_pruned, source, str(tmp_path / "one"), ranks=(0,))
    found = processes.run(cases.folder_pruned, source, str(tmp_path / "two"), ranks=(0, 1))
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    for weights, report in found:
        assert_same(whole, weights, 1e-5)
        assert report == found[0][1]
        assert report["perplexity"] == pytest.approx(said["perplexity"], rel=1e-4)
