"""Rows of JSON: one object on each line, or the objects of one list. What a file can hold is bounded here."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, TextIO

from preferent.errors import DataError

DEPTH = 64
"""Levels of lists and objects in a row."""
DIGITS = 300
"""Digits of a whole number; a number of more digits is larger than any that arithmetic holds."""
LONGEST = 64 << 20
"""Bytes of a line, and characters of a row of a list or of a cell of a table."""
CHUNK = 1 << 20
SPACE = re.compile(r"[ \t\r\n]*")
Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | str]]
"""Rows with the line on which each begins: the object, or the reason, as `category: detail`, why it is not one."""


class Unreadable(ValueError):
    """A JSON value that cannot be kept; the text is `category: detail`."""


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise Unreadable(f"repeated key: {json.dumps(name[:40])} stands twice in the row; keep one of them")
    return row


def _whole(text: str) -> int:
    return int(text) if len(text) <= DIGITS else _refuse(text)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> Any:
    raise Unreadable(f"bad number: {text[:40]}")


STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_finite, parse_constant=_refuse)
TOLERANT = json.JSONDecoder(parse_int=lambda text: int(text) if len(text) <= DIGITS else math.inf)
"""Reads what `STRICT` refuses, so that `fault` can name the key; refused numbers are infinite or NaN."""


def fault(value: object, place: str = "", depth: int = 0, nul: bool = False) -> str:
    """Return why a JSON value cannot be kept (text that is not Unicode, a bad number, deep nesting, NUL), or "".

    U+0000 is no fault if `nul`.
    """
    if depth > DEPTH:
        return f"nested too deeply: more than {DEPTH} levels"
    if isinstance(value, str):
        return _text_fault(value, place or "a text", nul)
    if isinstance(value, float) and not math.isfinite(value):
        return f"bad number: {place or 'a number'} is not finite or has more than {DIGITS} digits"
    inner: Iterator[tuple[str, object]] = iter(())
    if isinstance(value, dict):
        if reason := next((reason for key in value if (reason := _text_fault(key, "a key", nul))), ""):
            return reason
        inner = ((f"{place}.{key[:40]}" if place else key[:40], part) for key, part in value.items())
    elif isinstance(value, list):
        inner = ((f"{place}[{number}]", part) for number, part in enumerate(value))
    return next((reason for name, part in inner if (reason := fault(part, name[-80:], depth + 1, nul))), "")


def _text_fault(text: str, place: str, nul: bool) -> str:
    if "\0" in text and not nul:
        return f"NUL character: {place} holds U+0000"
    return f"not Unicode: {place} holds half of a surrogate pair" if re.search("[\ud800-\udfff]", text) else ""


def _kept(value: object, text: str, unit: str, nul: bool) -> Row | str:
    """Return a decoded value if it is an object that can be kept, or the reason why not; U+0000 is kept if `nul`."""
    if not isinstance(value, dict):
        return f"not an object: a JSON {json_name(value)}, where each {unit} should be one object"
    suspect = "\\u" in text or text.count("{") + text.count("[") > DEPTH
    return (fault(value, nul=nul) if suspect else "") or value


def json_name(value: object) -> str:
    """Return what JSON calls a value."""
    names = {dict: "object", list: "array", str: "string", bool: "truth value", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else "value")


def value_of(line: bytes) -> Any:
    """Return the JSON value in a line; raise `Unreadable` with the reason if it is not one or cannot be kept."""
    if b"\0" in line:
        raise Unreadable(f"NUL character: a byte 0x00 at position {line.index(0)}; if it is UTF-16, save it as UTF-8")
    try:
        text = line.rstrip(b"\r\n").decode()
        return STRICT.decode(text)
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}; save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        message = error.msg.removesuffix(" at")
        raise Unreadable(f"malformed JSON: {message} at column {error.colno}; each line is one JSON object") from None
    except RecursionError:
        raise Unreadable(f"nested too deeply: more than {DEPTH} levels") from None
    except Unreadable as reason:
        raise Unreadable(_explained(text, reason)) from None


def _explained(text: str, reason: Unreadable) -> str:
    """Return the reason with the key of what was refused, if the rest of the text can be read."""
    try:
        return fault(TOLERANT.decode(text)) or str(reason)
    except (ValueError, RecursionError):
        return str(reason)


def parse(line: bytes, nul: bool = False) -> Row | str:
    """Return the object in a line, or the reason why it is not one; its texts may hold U+0000 if `nul`."""
    try:
        return _kept(value_of(line), line.decode(), "line", nul)
    except Unreadable as reason:
        return str(reason)


def lines(stream: IO[bytes], nul: bool = False) -> Rows:
    """Yield the rows of JSON lines. Blank lines are skipped; a byte order mark and CRLF are accepted."""
    number = 0
    while raw := stream.readline(LONGEST + 1):
        number += 1
        if len(raw) > LONGEST:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(LONGEST)
            yield number, f"too long: the line has more than {LONGEST:,} bytes"
            continue
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if line.strip():
            yield number, parse(line, nul)


class JsonList:
    """The values of one JSON list, read through a window that moves over the text: each character is copied once."""

    def __init__(self, source: TextIO, file: str, nul: bool = False) -> None:
        self._source, self._file, self._nul = source, file, nul
        self._window, self._at, self._line = "", 0, 1
        self._ended = False

    def rows(self) -> Rows:
        """Yield the rows; an error of the list itself, after which no row can be told apart, raises `DataError`."""
        self._next_mark()
        self._at += 1
        mark = self._next_mark()
        if mark == "]":
            self._at += 1
        while mark != "]":
            line = self._line
            yield line, self._row()
            mark = self._next_mark()
            if mark not in (",", "]"):
                raise self._error("a comma or ] must stand between two rows of a list")
            self._at += 1
            self._next_mark()
        if self._next_mark():
            raise self._error("there is text after the end of the list; a file is one list, or JSON lines")

    def _row(self) -> Row | str:
        reason = ""
        try:
            value, end = self._decode(STRICT)
        except Unreadable as refused:
            value, end = self._decode(TOLERANT)
            reason = fault(value) or str(refused)
        text = self._window[self._at : end]
        self._line += text.count("\n")
        self._at = end
        return reason or _kept(value, text, "row of the list", self._nul)

    def _decode(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """Return the next value and its end in the window, which grows until it holds the whole value."""
        while True:
            try:
                value, end = decoder.raw_decode(self._window, self._at)
                if end < len(self._window) or self._ended:
                    return value, end
            except json.JSONDecodeError as error:
                if self._ended or (error.pos < len(self._window) - 16 and "Unterminated" not in error.msg):
                    self._line += self._window.count("\n", self._at, error.pos)
                    raise self._error(error.msg.removesuffix(" at")) from None
            except RecursionError:
                raise self._error(f"nested too deeply: more than {DEPTH} levels") from None
            self._grow()

    def _next_mark(self) -> str:
        """Go to the next character that is not white space and return it; an empty text at the end."""
        while True:
            match = SPACE.match(self._window, self._at)
            end = match.end() if match else self._at
            self._line += self._window.count("\n", self._at, end)
            self._at = end
            if end < len(self._window) or self._ended:
                return self._window[end : end + 1]
            self._grow()

    def _grow(self) -> None:
        """Move the window on, to at least twice the text that was not read yet."""
        rest = self._window[self._at :]
        if len(rest) > LONGEST:
            raise self._error(f"the row has more than {LONGEST:,} characters")
        more = self._source.read(max(CHUNK, len(rest)))
        self._window, self._at, self._ended = rest + more, 0, not more

    def _error(self, reason: str) -> DataError:
        return DataError(f"{self._file}:{self._line}: malformed JSON: {reason}")
