"""The registry of benchmarks: complete, true to the files there are, and the only way that is documented."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import __main__ as runner
from bench import documents
from bench.provenance import ROOT, write_results
from bench.registry import ENTRIES, NOT_KNOWN, Entry

entries = pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
GUARD = '\nif __name__ == "__main__":\n'


def runnable() -> Iterator[str]:
    """Names of what can be run: pytest's modules, modules with a `main` and packages with a `__main__`; helpers not."""
    for path in sorted((ROOT / "bench").glob("*.py")):
        if path.name.startswith("test_") or (not path.name.startswith("_") and GUARD in path.read_text()):
            yield path.stem.removeprefix("test_")
    for path in sorted((ROOT / "bench").glob("*/__main__.py")):
        yield path.parent.name


def test_all_that_can_be_run_is_an_entry() -> None:
    assert sorted(runnable()) == sorted(ENTRIES)
    assert all(name == entry.name for name, entry in ENTRIES.items())


def test_every_results_file_belongs_to_one_entry() -> None:
    owners = Counter(path for entry in ENTRIES.values() for path in entry.writes)
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "bench" / "results").iterdir()}
    assert set(owners.values()) == {1}
    assert found <= set(owners)
    missing = {path for path in owners if not (ROOT / path).exists()}
    assert missing <= {path for entry in ENTRIES.values() if entry.takes == NOT_KNOWN for path in entry.writes}


@entries
def test_the_command_is_there(entry: Entry) -> None:
    program, *words = entry.command.split()
    if program == "python":
        assert words == ["-m", f"bench.{entry.name}"]
        spec = importlib.util.find_spec(words[1])
        assert spec is not None
        assert not spec.submodule_search_locations or importlib.util.find_spec(f"{words[1]}.__main__")
    else:
        assert program == "pytest"
        assert entry.gpu is (words == ["-m", "gpu"])
        assert entry.gpu or words == [f"bench/test_{entry.name}.py", "--write-results"]
        assert (ROOT / "bench" / f"test_{entry.name}.py").exists()
        assert entry.writes == (f"bench/results/{entry.name}.json",)


@entries
def test_the_module_names_its_results(entry: Entry) -> None:
    """But for pytest's modules, whose file `conftest.py` names after them."""
    if entry.command.startswith("pytest bench/"):
        return
    package = ROOT / "bench" / entry.name / "__main__.py"
    module = ROOT / "bench" / f"{'test_' * entry.gpu}{entry.name}.py"
    text = (package if package.exists() else module).read_text()
    named = set(re.findall(r'ROOT / "bench" / "results" / "([\w.]+)"', text))
    assert named == {Path(path).name for path in entry.writes if path.startswith("bench/results/")}


def test_extras_are_those_of_the_package() -> None:
    optional = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    known = set(re.findall(r"^(\w+) = \[", optional.partition("\n\n")[0], re.MULTILINE))
    assert {entry.extra for entry in ENTRIES.values()} - {""} <= known


def test_contributing_documents_the_entries_and_no_other_command() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert documents.benchmarks() in text
    modules = set(re.findall(r"python3? -m (bench\.\w+)", text))
    assert modules <= {entry.command.split()[-1] for entry in ENTRIES.values()}
    files = set(re.findall(r"pytest [^`\n]*\b(bench/\w+\.py)", text))
    assert files == {f"bench/{path.name}" for path in (ROOT / "bench").glob("test_*.py")}


def test_nobody_imports_conftest_and_the_package_imports_no_benchmark() -> None:
    sources = {path: path.read_text() for folder in ("bench", "tests", "fairkern", "examples")
               for path in (ROOT / folder).rglob("*.py")}  # fmt: skip
    hooks = re.compile(r"^\s*(from|import) bench(\.| import )conftest\b", re.MULTILINE)
    benches = re.compile(r"^\s*(from|import) bench\b", re.MULTILINE)
    assert [path for path, text in sources.items() if hooks.search(text)] == []
    product = [path for path in sources if path.relative_to(ROOT).parts[0] in ("fairkern", "examples")]
    assert [path for path in product if benches.search(sources[path])] == []
    assert len(product) > 50


def test_the_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-len(ENTRIES) :]] == list(ENTRIES)
    assert runner.main(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


@entries
def test_the_command_is_run_by_this_interpreter(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(runner.os, "execv", lambda program, words: started.append((program, words)))
    runner.main([entry.name, "--more", "arguments"])
    module = entry.command.replace("python -m ", "").split()
    assert started == [(sys.executable, [sys.executable, "-m", *module, "--more", "arguments"])]


def test_arguments_are_handed_on() -> None:
    command = [sys.executable, "-m", "bench", "allocation", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "bench/test_allocation.py::test_one_cost" in done.stdout
    assert "passed" not in done.stdout


def test_a_results_file_begins_with_schema_and_provenance(tmp_path: Path) -> None:
    path = tmp_path / "results" / "some.json"
    written = write_results(path, rows=[{"case": "a"}])
    assert json.loads(path.read_text()) == written
    assert list(written)[:4] == ["schema", "commit", "uncommitted_changes", "date"]
    assert written["schema"] == 1
    assert written["rows"] == [{"case": "a"}]
    assert list(write_results(path, schema=2, source={"commit": "abc"}, rows=[])) == ["schema", "commit", "rows"]
    assert [file.name for file in path.parent.iterdir()] == ["some.json"]
