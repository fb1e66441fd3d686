"""README.md keeps its word: the commands are there, figures are those of the results files (test_docs.py runs it)."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from bench import documents
from fairkern.cli import main
from fairkern.cli.given import named
from fairkern.cli.parser import command_line

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
pytestmark = pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="not a checkout")


def test_the_two_commands() -> None:
    for mark, command in (
        ("main job", 'pip install ".[demo]" && fairkern demo'),
        ("tests", 'pip install -e ".[test]" && pytest'),
    ):
        assert f"<!-- {mark} -->\n```bash\n{command}\n```\n" in README
    assert "python3 -m venv" in README


def test_what_the_tests_leave_out_for_its_time_is_a_step_of_its_own() -> None:
    (left_out,) = re.findall(r'"(not zoo[^"]*)"', (ROOT / "pyproject.toml").read_text())
    (longer,) = re.findall(r"^longer='(.*)'", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert longer == "slow and " + left_out.removesuffix(" and not slow")
    assert left_out.endswith(" and not slow")
    assert f'`pytest -m "{longer}"`' in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_commands_parse_and_name_things_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [text for language, text in BLOCKS if language == "bash" and "fairkern trace" in text]
    parser = command_line()
    for line in block.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "fairkern"
        parser.parse_args(arguments)
        for spec in re.findall(r"[\w.]+:\w+", line):
            module, _, attribute = spec.partition(":")
            assert callable(getattr(importlib.import_module(module), attribute))


def test_the_trace_command_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    assert main(["trace", "fairkern.demo.models:vgg", "fairkern.demo.data:example"]) == 0
    assert "features.conv1_1" in capsys.readouterr().out
    assert named("fairkern.demo.models:vgg") is not None


def test_the_command_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from bench.shipping.families import make_folder, write_text

    (line,) = [text for language, text in BLOCKS if language == "bash" and "--hf" in text and "export" not in text]
    monkeypatch.chdir(tmp_path)
    make_folder("qwen3", Path("my-model"))
    write_text(Path("text.txt"))
    program, *arguments = shlex.split(line)
    assert program == "fairkern"
    assert main([*arguments, "--samples", "8", "--quiet"]) == 0
    transformers.AutoModelForCausalLM.from_pretrained("my-model-small")


@pytest.mark.parametrize("name", documents.DOCUMENTS)
def test_figures_come_from_the_results(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "<!-- figures: " in text
    assert documents.fill(text) == text, "run `python -m bench.documents`"


@pytest.mark.parametrize(
    "path", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
)
def test_links_lead_somewhere(path: str | Path) -> None:
    document = ROOT / path
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target
