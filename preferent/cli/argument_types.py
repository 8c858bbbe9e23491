"""What the words of a command line mean where they are numbers, sizes or speeds."""

import argparse
import re
from collections.abc import Callable


def above_zero(kind: type[float]) -> Callable[[str], float]:
    """Return an argparse type for numbers above 0."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    return number


def size(text: str) -> int:
    """Read a size of memory: a number with GiB or GB, MiB or MB."""
    match = re.fullmatch(r"([\d.]+) ?([GM])(i?)B?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is no size of memory; write it as 80GiB")
    unit = (1024 if match[3] else 1000) ** (3 if match[2].upper() == "G" else 2)
    return round(float(match[1]) * unit)


def speed(text: str) -> float:
    """Read bytes per second: a size with /s."""
    amount, slash, unit = text.partition("/")
    try:
        number = float(size(amount))
    except (argparse.ArgumentTypeError, ValueError):
        number = 0.0
    if number == 0 or slash + unit != "/s":
        raise argparse.ArgumentTypeError(f"{text} is no speed; write it as 25GB/s")
    return number
