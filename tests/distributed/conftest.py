"""A folder of data with an interpreter that forks ranks."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nursery import prepare
from ranked import Ranked

CALLED = """
import os


def length(prompts, answers):
    with open(os.environ["CALLS"], "a") as file:
        print(len(answers), file=file)
    return [len(answer) / 10 for answer in answers]
"""


@pytest.fixture(scope="module")
def ranked(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranked]:
    folder = prepare(tmp_path_factory.mktemp("ranks"), make_model())
    (folder / "counted_calls.py").write_text(CALLED)
    started = Ranked(folder)
    yield started
    started.close()
