"""What the lessons import is found here as in a notebook, which runs in their folder."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs/lessons"))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[Callable[[Any], None], Any], str]:
    """A function that returns what the check of an exercise prints about an answer."""

    def ask(check: Callable[[Any], None], answer: Any) -> str:
        check(answer)
        return capsys.readouterr().out

    return ask
