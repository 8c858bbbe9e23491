"""A signal is heeded, whatever was inherited, and whoever had a handler keeps it."""

import signal
from types import FrameType

import pytest

from preferent.runs import interruption


@pytest.mark.parametrize("inherited", [signal.SIG_IGN, signal.default_int_handler])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heeded_also_where_it_was_inherited_as_ignored(number, inherited):
    numbers: list[int] = []
    before = signal.signal(number, inherited)
    try:
        with interruption.heeded(numbers.append):
            signal.raise_signal(number)
        assert signal.getsignal(number) is inherited
    finally:
        signal.signal(number, before)
    assert numbers == [number]


def test_a_handler_of_the_users_own_stays():
    theirs: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        theirs.append(number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        with interruption.heeded(lambda number: pytest.fail("is not ours to heed")):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert theirs == [signal.SIGTERM]
