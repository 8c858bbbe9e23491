"""On real preferences with a length bias the report shows it and says so, before anything is tuned."""

import gzip
import json
import os
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from preferent import files

DATA = Path(__file__).resolve().parent.parents[2] / "shared" / "data" / "preference" / "ukp_convarg"
RECIPE = """
large_model_reference: base
preference_dataset: train.jsonl
eval_dataset: validation.jsonl
prompt_sequence_length: 48
target_sequence_length: 96
reward_model_train_steps: 50
reward: {batch_size: 32, learning_rate: 1.0e-3, validation_every: 25}
compare: {judge: reward}
precision: fp32
threads: 1
"""


def prepare(folder: Path) -> None:
    """The data with the votes' majority as `strength`, the texts to learn tokens from, and the recipe."""
    for part in ("train", "validation"):
        with gzip.open(DATA / f"{part}.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        files.write_jsonl(
            folder / f"{part}.jsonl", [row | {"strength": abs(row["votes_0"] - row["votes_1"])} for row in rows]
        )
    texts = [row["input_text"] + row["candidate_0"] for row in files.read_jsonl(folder / "train.jsonl")]
    files.write_jsonl(folder / "text.jsonl", [{"text": text} for text in texts])
    (folder / "recipe.yaml").write_text(RECIPE)


@pytest.mark.acceptance
@pytest.mark.skipif(not DATA.exists(), reason="the real data are not here")
def test_the_report_says_that_longer_wins(tmp_path: Path) -> None:
    prepare(tmp_path)
    pairs = " ".join(f"--in {part}=run/data/preference/{part}.jsonl" for part in ("train", "validation", "test"))
    sizes = "--vocab-size 1024 --hidden-size 48 --layers 2 --heads 4 --positions 160"
    for words in (
        f"scratch --text text.jsonl --out base {sizes}",
        "data prepare --recipe recipe.yaml --out run/data",
        f"reward --recipe recipe.yaml --in model=base {pairs} --out run/reward",
        "report --recipe recipe.yaml --in run=run --out run",
    ):
        argv = [sys.executable, "-m", "preferent", *words.split()]
        subprocess.run(argv, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)

    quality = files.read_json(tmp_path / "run/reward/quality.json")
    test, rules = quality["test"], quality["rules"]
    assert test["count"] == 479 and test["longer_accuracy"] == pytest.approx(0.715, abs=0.005)
    assert rules["longer"]["interval"][0] > 0.6 and test["length_correlation"] > 0.5
    assert 0.6 < test["accuracy"] < 0.85 and 0.7 < rules["words"]["share"] < 0.8
    assert quality["length"]["longer_won"]["share"] > quality["length"]["shorter_won"]["share"] + 0.2
    assert sum(one["count"] for one in quality["by_strength"]) == 479

    page = unescape((tmp_path / "run/report.html").read_text()).replace("\u00a0", " ")
    assert "Longer wins would be right in 72 % of these pairs, and scores depend on length (Spearman " in page
    assert f"Spearman {test['length_correlation']:.2f}; the longer answer scores higher in" in page
    assert "this reward will make answers longer." in page
    assert "There is no verdict: nothing was compared yet." in page
    assert "data/preference/test.jsonl:" in page and len(page.encode()) < 1_000_000
