"""How long `preferent VERB --help` takes, warm: the median of five, which should stay below 0.25 seconds.

python bench/help.py
"""

import argparse
import statistics
import subprocess
import sys
import time

from preferent.cli.arguments import parser

LIMIT_SECONDS = 0.25
TIMES = 5


def verbs(verb: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every verb as the words that name it."""
    found = [words]
    for action in verb._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                found += verbs(inner, (*words, word))
    return found


def seconds(words: tuple[str, ...]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "preferent", *words, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    slow = []
    for words in verbs(parser()):
        seconds(words)
        median = statistics.median(seconds(words) for _ in range(TIMES))
        name = " ".join(("preferent", *words, "--help"))
        print(f"{name:<40} {median:.3f} s")
        if median > LIMIT_SECONDS:
            slow.append(name)
    if slow:
        sys.exit(f"slower than {LIMIT_SECONDS} s: {', '.join(slow)}")


if __name__ == "__main__":
    main()
