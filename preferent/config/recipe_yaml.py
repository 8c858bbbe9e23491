"""YAML as a recipe may hold it: no key twice, and bounded in nesting, length of numbers, and size of its aliases."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from preferent.errors import UsageError

DEPTH = 32
"""Levels of mappings and lists."""
NODES = 20_000
"""Keys and values, those that an alias repeats counted each time."""
LETTERS = 1 << 20
DIGITS = 300
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
Where = Callable[[Any], str]
"""From a mark of the library, or None, to the place for a message."""
Sizes = dict[int, int]
"""The expanded size of a node, by its identity; 0 while it is being counted."""


def parse(text: str, place: str, has_lines: bool = True) -> Any:
    """Return what a YAML text says; raise `UsageError` with `place`, and the line in a file, for what is wrong."""
    if len(text) > LETTERS:
        raise UsageError(f"{place}: has {len(text):,} characters; a recipe has at most {LETTERS:,}")

    def where(mark: Any) -> str:
        return place if mark is None or not has_lines else f"{place}:{mark.line + 1}"

    with _placed(where):
        _check_depth(text, where)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _check(node, where, {})
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_document(node)
        finally:
            loader.dispose()


@contextlib.contextmanager
def _placed(where: Where) -> Iterator[None]:
    """Turn the errors of the library into one that names the place."""
    try:
        yield
    except yaml.YAMLError as error:
        reason = str(getattr(error, "problem", None) or error)[:200]
        raise UsageError(f"{where(getattr(error, 'problem_mark', None))}: not YAML: {reason}") from None
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{where(None)}: not YAML: {str(error)[:200]}; put a text in quotes") from None


def _check_depth(text: str, where: Where) -> None:
    """Refuse deep nesting, before anything follows it by recursion."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise UsageError(f"{where(event.start_mark)}: nested too deeply: more than {DEPTH} levels")


def _check(node: yaml.Node, where: Where, sizes: Sizes) -> int:
    """Return the number of keys and values below a node, with those of aliases; refuse what a recipe cannot hold."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise UsageError(f"{where(node.start_mark)}: an alias stands inside of what it repeats")
        return sizes[id(node)]
    sizes[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, where)
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    elif node.tag in NUMBERS and len(node.value) > DIGITS:
        raise UsageError(f"{where(node.start_mark)}: a number of {len(node.value)} digits; put a text in quotes")
    size = 1 + sum(_check(child, where, sizes) for child in children)
    if size > NODES:
        raise UsageError(f"{where(node.start_mark)}: has more than {NODES:,} values, with those that aliases repeat")
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode, where: Where) -> None:
    lines: dict[str, str] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = where(key.start_mark)
            if key.value in lines:
                raise UsageError(
                    f"{line}: the key {key.value[:60]!r} stands twice, first at {lines[key.value]}; keep one of them"
                )
            lines[key.value] = line
