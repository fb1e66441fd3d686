"""What a cell of the table is, and how a cut of a model with dead units is judged."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from bench.comparison.cases import Case, chain

ANSWERS = ("yes", "partly", "no")


@dataclass(frozen=True)
class Cell:
    """`what`: what was run and what came, or the document that says so."""

    answer: str
    what: str
    how: str = "tried"

    def __post_init__(self) -> None:
        assert self.answer in ANSWERS
        assert self.how in ("tried", "cited")


def yes(what: str) -> Cell:
    return Cell("yes", what)


def partly(what: str) -> Cell:
    return Cell("partly", what)


def no(what: str) -> Cell:
    return Cell("no", what)


def cited(answer: str, source: str) -> Cell:
    return Cell(answer, source, "cited")


def absent(package: ModuleType, words: str) -> None:
    """That no source file of an installed package has such words: what is said of it to be missing is missing."""
    folder = Path(package.__file__ or "").parent
    found = [path for path in sorted(folder.rglob("*.py")) if re.search(words, path.read_text(), re.IGNORECASE)]
    assert not found, f"{found[0]} speaks of {words}"


WRONG = "as many as are dead went, and not those"


def follows(found: Mapping[str, Cell]) -> Cell:
    """Of the rows of what can be removed: yes where every cut that was made is right, or was refused."""
    wrong = [name for name, cell in found.items() if WRONG in cell.what or "the model that is left raises" in cell.what]
    if wrong:
        return no(f"of {len(found)} structures here it cut {', '.join(wrong)} wrongly, and said nothing")
    return yes(f"of {len(found)} structures here it cut none wrongly")


def safe(state: object) -> bool:
    """Whether torch reads it back from a file without running a pickle's code (`weights_only`)."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return failing(lambda: torch.load(file, weights_only=True)) is None


def exported(small: nn.Module, whole: nn.Module, example: Tensor) -> tuple[float, float]:
    """The size of a cut model's ONNX file over the whole one's, and how far onnxruntime's output is from torch's."""
    import onnxruntime

    sizes, apart = list[int](), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("whole", whole), ("small", small)):
            path = Path(folder) / f"{name}.onnx"
            torch.onnx.export(model, (example,), path, input_names=["x"], external_data=False, verbose=False)
            (found,) = onnxruntime.InferenceSession(path).run(None, {"x": example.numpy()})
            with torch.no_grad():
                expected = model(example)
            apart = float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max())
            sizes.append(path.stat().st_size)
    return sizes[1] / sizes[0], apart


def smaller_file(cut: Callable[[Case], nn.Module]) -> Cell:
    """The cell of a tool whose cut models are exported as smaller files that give what the models give."""
    case, whole = chain(), chain().model
    size, apart = exported(cut(case), whole, case.example)
    assert size < 0.9
    assert apart < 1e-4
    return yes(f"{size:.0%} of the file, onnxruntime's output apart by {apart:.0e}")


def failing(call: Callable[[], object]) -> str | None:
    """The error that a call ends with, in a line; None where it comes to its end."""
    try:
        call()
    except Exception as error:  # whatever another library raises is what is looked for
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:90]}".rstrip(": ")
    return None


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def judged(case: Case, cut: Callable[[Case], nn.Module], said: str = "") -> Cell:
    """yes: all dead units have gone and the output is what it was. `said`: what the tool had to be told."""
    with torch.no_grad():
        expected = case.model(case.example)
    whole, small = case.whole, list[nn.Module]()
    error = failing(lambda: small.append(cut(case)))
    if error:
        return no(f"raises {error}{said}")
    output = list[Tensor]()
    with torch.no_grad():
        error = failing(lambda: output.append(small[0](case.example)))
    left = parameters(small[0])
    sizes = f"{whole:,} → {left:,} parameters"
    if error:
        return no(f"{sizes}, and the model that is left raises {error}{said}")
    if output[0].shape != expected.shape:
        return no(f"{sizes}, and outputs have another shape{said}")
    apart = float((output[0] - expected).abs().max() / expected.abs().max())
    if left == whole:
        return no(f"nothing is removed{said}")
    if apart > 1e-4:
        if left == case.left:
            return no(f"{sizes}, and the output moves by {apart:.0%}: {WRONG}{said}")
        return no(
            f"{sizes}, and the output moves by {apart:.0%}, where {case.left:,} with the same output are possible{said}"
        )
    if left > case.left:
        return partly(f"{sizes} of {case.left:,} that are possible{said}")
    return Cell("partly" if said else "yes", f"{sizes}, same output{said}")
