"""What is changed in a source file, one change a mutant.

Operators: comparisons (`<` to `<=` and to `>=`, `==` to `!=`, `is`, `in`), arithmetic and bitwise ones (`+` to `-`, and
in `+=`), `and` to `or`, `not`, minus and `~` dropped. Constants: numbers plus one, truth values turned, names in quotes
altered. Conditions that are no comparison are negated. Calls: `min` to `max`, `any` to `all`, `sorted` to `list`, an
optional keyword dropped. Slices lose a bound. Statements are left out: a call for its effect, `+=`, a write to an
element, `raise`, an early `return`; `break` to `continue`.

Left as they are, because no test could or should tell: annotations and aliases of types, docstrings, wording (strings
with a blank, what `raise` is given, f-strings with a blank, `__repr__`), `__all__`, imports, `assert`, `strict=` (a
check of the code by itself), options of a class (`frozen`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType

_COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
_TYPES = {"annotation", "returns", "type_params", "type_ignores"}  # fields
_ASSERTED = "strict"  # keyword of zip


@dataclass(frozen=True)
class Mutant:
    """`number`: which of its file's changes. `name` holds no line number, so that it outlives edits elsewhere."""

    path: str  # from the repository's root
    number: int
    line: int
    function: int | None  # first line of the outermost function whose body is changed; None: what runs on import
    name: str  # path::function: before → after

    def compiled(self, root: Path) -> CodeType:
        """The file's code with this change."""
        tree = ast.parse(_source(root / self.path))
        next(change for k, change in enumerate(_changes(tree)) if k == self.number).make()
        return compile(ast.fix_missing_locations(tree), str(root / self.path), "exec", dont_inherit=True)


@dataclass(frozen=True)
class _Change:
    """A node of a field (`place`: of a list) of `parent`, and what takes its place."""

    where: str  # functions and classes around it
    function: int | None  # see `Mutant`
    parent: ast.AST
    field: str
    place: int | None
    old: ast.AST
    new: ast.AST | None

    def make(self) -> None:
        if self.place is None:
            setattr(self.parent, self.field, self.new)
        elif self.new is None:
            del getattr(self.parent, self.field)[self.place]
        else:
            getattr(self.parent, self.field)[self.place] = self.new

    @property
    def line(self) -> int:
        return next(node.lineno for node in (self.old, self.parent) if hasattr(node, "lineno"))

    @property
    def text(self) -> str:
        before, after = (re.sub(r"\s+", " ", ast.unparse(node)) if node else "nothing" for node in (self.old, self.new))
        return f"{self.where}: {before} → {after}"


def mutants(root: Path, path: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its source."""
    changes = _changes(ast.parse(_source(root / path)))
    return [Mutant(path, k, c.line, c.function, f"{path}::{c.text}") for k, c in enumerate(changes)]


@cache
def _source(path: Path) -> str:
    """As it was when mutants were counted: children do not see what is edited since."""
    return path.read_text()


def _changes(node: ast.AST, where: str = "", function: int | None = None) -> Iterator[_Change]:
    for field, value in ast.iter_fields(node):
        inside = function
        if inside is None and isinstance(node, ast.FunctionDef) and field == "body":
            inside = min(part.lineno for part in (node, *node.decorator_list))
        for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _left(node, field, child):
                continue
            for new in _alternatives(node, field, child):
                yield _Change(where, inside, node, field, place, child, new)
            named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
            yield from _changes(child, f"{where}.{child.name}".lstrip(".") if named else where, inside)


def _left(parent: ast.AST, field: str, child: ast.AST) -> bool:
    """Whether a part of the code stays as it is."""
    match child:
        case ast.Import() | ast.ImportFrom() | ast.Assert():
            return True
        case ast.Expr(ast.Constant()):  # a docstring
            return True
        case ast.Constant(str(text)):
            return " " in text
        case ast.JoinedStr(parts):
            return any(isinstance(part, ast.Constant) and " " in part.value for part in parts)
        case ast.FunctionDef():
            return child.name in ("__repr__", "__str__")
        case ast.If(ast.Name("TYPE_CHECKING")):
            return True
        case ast.keyword(arg) if arg == _ASSERTED:
            return True
        case ast.Assign([ast.Name(name)]) if isinstance(parent, ast.Module):
            return name == "__all__" or bool(re.match(r"[A-Z]\w*[a-z]", name))  # the latter: an alias of a type
    if isinstance(parent, ast.ClassDef):
        return field in ("decorator_list", "keywords", "bases")
    if isinstance(parent, ast.JoinedStr):  # its letters, not what stands in braces
        return isinstance(child, ast.Constant)
    return field in _TYPES or isinstance(parent, ast.Raise)


def _alternatives(parent: ast.AST, field: str, node: ast.AST) -> Iterator[ast.AST | None]:
    if field in ("test", "ifs") and not _has_own(node):
        yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.Compare(left, operators, others):
            for k, operator in enumerate(operators):
                for other in _COMPARED[type(operator)]:
                    yield ast.Compare(left, [*operators[:k], other(), *operators[k + 1 :]], others)
        case ast.BinOp(left, operator, right) if type(operator) in _COMPUTED:
            yield ast.BinOp(left, _COMPUTED[type(operator)](), right)
        case ast.AugAssign(target, operator, value):
            if type(operator) in _COMPUTED:
                yield ast.AugAssign(target, _COMPUTED[type(operator)](), value)
            yield ast.Pass()
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Constant(value):
            yield from _other_values(value)
        case ast.Call():
            yield from _other_calls(node)
        case ast.Slice(lower, upper, step):
            if lower is not None:
                yield ast.Slice(None, upper, step)
            if upper is not None:
                yield ast.Slice(lower, None, step)
        case ast.Expr(ast.Call()) | ast.Raise() | ast.Assign([ast.Subscript()]):
            yield ast.Pass()
        case ast.Return() if not isinstance(parent, ast.FunctionDef):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()


def _has_own(condition: ast.AST) -> bool:
    """Whether a condition has a mutant of its own at its top."""
    return isinstance(condition, (ast.Compare, ast.BoolOp, ast.Constant)) or (
        isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not)
    )


def _other_values(value: object) -> Iterator[ast.AST]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, (int, float)):
        yield ast.Constant(value + 1)
    elif isinstance(value, str):
        yield ast.Constant(f"XX{value}XX")


def _other_calls(call: ast.Call) -> Iterator[ast.AST]:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if isinstance(call.func, ast.Name) and name in _CALLED:
        keywords = [] if name == "sorted" else call.keywords
        yield ast.Call(ast.Name(_CALLED[name], ast.Load()), call.args, keywords)
    if name.lstrip("_")[:1].islower():  # not a class, which needs what it is given
        for k, keyword in enumerate(call.keywords):
            if keyword.arg not in (None, _ASSERTED):
                yield ast.Call(call.func, call.args, [*call.keywords[:k], *call.keywords[k + 1 :]])
