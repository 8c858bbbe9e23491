"""Small changes of a Python source, one at a time: what a slip of the pen would make of it."""

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
OPERATORS |= {ast.Pow: ast.Mult, ast.LShift: ast.RShift}
NAMES = {"min": "max", "maximum": "minimum", "any": "all", "floor": "ceil", "ones": "zeros", "ones_like": "zeros_like"}
NAMES |= {other: name for name, other in NAMES.items()}

Put = Callable[[ast.AST], None]


@dataclass(frozen=True, slots=True)
class Change:
    """Of a file: the line's number and text, what becomes of what, and the whole text after it."""

    file: str
    number: int
    line: str
    what: str
    text: str

    def key(self, seed: int) -> bytes:
        """A draw keyed by what the change says, so that a change elsewhere in the file moves no other."""
        return hashlib.sha256(f"{seed}\0{self.file}\0{self.line}\0{self.what}".encode()).digest()


def changes(file: str, source: str) -> Iterator[Change]:
    """Every change of a source; of equal ones in a line the second says (2)."""
    tree, lines = ast.parse(source), source.splitlines()
    seen: Counter[tuple[str, str]] = Counter()
    for node, put in list(places(tree)):
        line = lines[node.lineno - 1].strip()
        for other in replacements(node):
            what = f"{_said(node)} -> {_said(other)}"
            seen[line, what] += 1
            put(other)
            text = ast.unparse(ast.fix_missing_locations(tree))
            put(node)
            number = seen[line, what]
            yield Change(file, node.lineno, line, what if number == 1 else f"{what} ({number})", text)


def _said(node: ast.AST) -> str:
    """A node in one line."""
    return ast.unparse(node).splitlines()[0]


def places(parent: ast.AST) -> Iterator[tuple[ast.AST, Put]]:
    """Every expression and statement below a node with a way to put something else in its place; but annotations,
    decorators, docstrings, and `strict=` of zip, which guards against mistakes of ours."""
    for name, value in ast.iter_fields(parent):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            if isinstance(node, ast.keyword) and node.arg == "strict":
                continue
            if isinstance(node, ast.expr | ast.stmt):
                yield node, _put(parent, name, index if isinstance(value, list) else None)
            yield from places(node)


def _put(parent: ast.AST, name: str, index: int | None) -> Put:
    def put(node: ast.AST) -> None:
        if index is None:
            setattr(parent, name, node)
        else:
            getattr(parent, name)[index] = node

    return put


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand for a node by mistake."""
    match node:
        case ast.Compare(left, [operator], right) if type(operator) in COMPARISONS:
            yield ast.Compare(left, [COMPARISONS[type(operator)]()], right)
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            yield ast.BinOp(left, OPERATORS[type(operator)](), right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(float() as value):
            yield ast.Constant(value * 2 or 1.0)
        case ast.If(test, body, orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Call(ast.Attribute(value, name, context), arguments, keywords) if name in NAMES:
            yield ast.Call(ast.Attribute(value, NAMES[name], context), arguments, keywords)
        case ast.Call(ast.Name(name, context), arguments, keywords) if name in NAMES:
            yield ast.Call(ast.Name(NAMES[name], context), arguments, keywords)
        case ast.AugAssign() | ast.Raise() | ast.Expr(ast.Call()):
            yield ast.Pass()
