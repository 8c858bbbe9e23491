"""What is to be shown on a card runs small on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.acceptance
def test_the_proof_for_a_card_runs_small_on_a_cpu(tmp_path: Path) -> None:
    argv = [sys.executable, str(ROOT / "bench/gpu.py"), "--small", "--out", str(tmp_path / "lines.jsonl")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(argv, check=True, env=environment, capture_output=True, timeout=300)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert {line["part"] for line in lines} == {0, 1, 2, 3, 4, 5, 6}
    by_part = {part: [line for line in lines if line["part"] == part] for part in (4, 5, 6)}
    assert by_part[5][0]["same_bits"] and by_part[5][0]["sampler_gap_nats"] < 1e-2
    assert by_part[4][0]["equal"] and by_part[4][1]["resumed_has_the_same_bits"]
    assert by_part[6][0]["first_ratio"] == 1.0 and by_part[6][0]["sampler_gap_nats"] < 1e-4
