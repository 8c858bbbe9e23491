"""What the threads of torch are told before it starts."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("set_before", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_waiting_threads_give_their_core_away_unless_the_user_says_otherwise(set_before, expected):
    rest = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    code = "import os, sys, preferent.cli.main; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=rest | set_before, capture_output=True, text=True)
    assert done.stdout.strip() == f"{expected} False", done.stderr
