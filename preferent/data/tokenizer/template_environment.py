"""The environment of chat templates: the one that transformers gives them, with a bound on the work of one rendering.

A template comes with a model, so anybody may have written it. Every loop step, call, filter and operation spends units:
one, one for each element that it handles, and one for each 16 letters. The count does not depend on the machine.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

TODAY = datetime(2024, 7, 26)
"""The date for templates that print it. It never changes, so that a run can be resumed on another day."""
UNITS = 200_000
UNITS_PER_ELEMENT = 10_000
"""The units that one rendering may spend: these, and these for each element and each 16 letters of the conversation."""

_MEASURED, _STEP = "measured value", "loop step"
"""Filters that only this module can name, because they hold a space."""
_BY_ELEMENT = {
    *("attr", "batch", "count", "d", "default", "dictsort", "first", "items", "last", "length", "list", "map"),
    *("random", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sum"),
}
"""Filters that do not read the elements of their elements."""
_WIDE = {"batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "tojson", "zfill"}
"""Filters and methods whose result grows with a number."""
_left: ContextVar[int] = ContextVar("units left to a rendering")


class TooMuchWorkError(Exception):
    """A rendering spent all its units."""


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Return the text of a template. Raise `TooMuchWorkError` if it spends more units than its variables allow."""
    left = _left.set(2**62)
    try:
        _left.set(UNITS + UNITS_PER_ELEMENT * _extent(dict(variables)))
        return template.render(variables)
    finally:
        _left.reset(left)


def _spend(units: int) -> None:
    left = _left.get() - units
    _left.set(left)
    if left < 0:
        raise TooMuchWorkError


def _extent(value: Any, whole: bool = True) -> int:
    """Return the units that a value takes, if `whole` also those of its elements; stop where no unit is left."""
    total, waiting, limit = 0, [value], _left.get()
    while waiting and total <= limit:
        part = waiting.pop()
        total += 1
        if isinstance(part, Namespace):
            part = part._Namespace__attrs
        if isinstance(part, list | tuple | dict | set | range):
            total += len(part)
        elif isinstance(part, str):
            total += len(part) >> 4
        elif isinstance(part, int):
            total += part.bit_length() >> 3
        if whole and total <= limit and isinstance(part, list | tuple | dict | set):
            waiting.extend(part)
            waiting.extend(part.values() if isinstance(part, dict) else ())
    return total


def _width(text: Any, values: Any) -> int:
    """Return the number of letters that a format text may pad its values to."""
    if not isinstance(text, str):
        return 0
    inner = re.search(r"\*|:[^}]*\{", text)
    numbers = [int(digits[:18]) for digits in re.findall(r"\d+", text)]
    given = values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else [values]
    return sum(numbers) + sum(abs(value) for value in given if inner and isinstance(value, int))


def _metered(value: Any) -> Any:
    """Spend the letters and elements of a new value; of an iterator, as they are read."""
    if isinstance(value, Iterator):
        return _read(value)
    _spend(_extent(value, whole=False))
    return value


def _read(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        _spend(_extent(value))
        yield value


class _Counting(NodeTransformer):
    """A rewriting of a template that makes loops, macros, output, comparisons and slices spend units."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, _step(node))
        if node.test is not None:
            node.test = nodes.And(_step(node).node, node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        node.body.insert(0, _step(node))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [part if isinstance(part, nodes.TemplateData) else _measured(part) for part in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        node.nodes = [_measured(part) for part in node.nodes]
        return _measured(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _measured(node.expr)
        for operand in node.ops:
            operand.expr = _measured(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _measured(node) if isinstance(node.arg, nodes.Slice) else node


def _measured(node: nodes.Expr) -> nodes.Expr:
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, _MEASURED, [], [], None, None, lineno=node.lineno)


def _step(node: nodes.Node) -> nodes.ExprStmt:
    true = nodes.Const(True, lineno=node.lineno)
    return nodes.ExprStmt(nodes.Filter(true, _STEP, [], [], None, None, lineno=node.lineno), lineno=node.lineno)


class _Generation(Extension):
    """The tag `generation` around what an assistant says; it marks tokens in transformers, and renders its body."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """The global `dict` without the methods of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace that refuses names with an underscore in front."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name like {name!r}, with an underscore in front")


def _refuse(message: Any) -> NoReturn:
    raise jinja2.TemplateError(message)


def _date(format: str) -> str:
    _spend(_width(format, ()))
    return TODAY.strftime(format)


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _plain() -> ImmutableSandboxedEnvironment:
    """Return the environment whose filters and tests do the work, without a bound."""
    environment = ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = _json
    return environment


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox in which templates are compiled and rendered. Random text (`lipsum`) is not there."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        plain = _plain()
        self.globals |= {"raise_exception": _refuse, "strftime_now": _date}
        self.globals |= {"dict": _Dict(), "namespace": _Namespace}
        del self.globals["lipsum"]
        self.filters = {name: _filter(plain, name) for name in plain.filters} | {_MEASURED: _measure, _STEP: _measure}
        self.tests = {name: _test(plain, name) for name in plain.tests}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        counting: nodes.Template = _Counting().visit(source)
        return super()._generate(counting.set_environment(self), *args, **kwargs)  # type: ignore[arg-type]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator after spending the size of its operands and of what it is about to make."""
        _spend(_extent(left, whole=operator == "%") + _extent(right, whole=operator == "%"))
        if operator == "%":
            _spend(_width(left, right))
        elif operator == "*":
            _spend(_repeated(left, right) + _repeated(right, left))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _spend(left.bit_length() * max(right, 0))
        return _metered(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what the sandbox allows after spending the size of the arguments."""
        whole = not isinstance(__obj, Macro)
        _spend(1 + sum(_extent(value, whole) for value in (*args, *kwargs.values())))
        if isinstance(__obj, BuiltinMethodType):
            _spend(_extent(__obj.__self__, whole=False) + _widths(__obj.__name__, args, kwargs))
        return _metered(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandbox's `str.format`, which spends the widths that its text names."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__

        def format(*args: Any, **kwargs: Any) -> str:
            _spend(_width(text, [*args, *kwargs.values()]))
            return wrapped(*args, **kwargs)

        return format


def _repeated(sequence: Any, number: Any) -> int:
    """Return the length of a sequence that is repeated; 0 where it is none."""
    repeats = isinstance(sequence, str | list | tuple) and isinstance(number, int)
    return len(sequence) * max(number, 0) if repeats else 0


def _widths(name: str, args: Any, kwargs: Mapping[str, Any]) -> int:
    """Return the numbers given to a filter or method whose result grows with them."""
    return sum(abs(n) for n in (*args, *kwargs.values()) if isinstance(n, int)) if name in _WIDE else 0


def _filter(plain: ImmutableSandboxedEnvironment, name: str) -> Callable[..., Any]:
    """Return a filter that spends units. It needs the context, so that none is applied while a template is compiled."""

    @pass_context
    def apply(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        _spend(_extent(value, name not in _BY_ELEMENT) + sum(_extent(part) for part in (*args, *kwargs.values())))
        _spend(_widths(name, args, kwargs) + (_width(value, args or kwargs) if name == "format" else 0))
        return _metered(plain.call_filter(name, value, args, kwargs, context=context))

    return apply


def _test(plain: ImmutableSandboxedEnvironment, name: str) -> Callable[..., Any]:
    """Return a test that spends units."""

    @pass_context
    def apply(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        _spend(_extent(value, whole=bool(args)) + sum(_extent(part) for part in (*args, *kwargs.values())))
        return plain.call_test(name, value, args, kwargs, context=context)

    return apply


@pass_context
def _measure(_context: Context, value: Any) -> Any:
    _spend(_extent(value))
    return value
