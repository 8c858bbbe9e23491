"""The loop closed: a run, people at its page, the next round from old and new preferences, and one page for all rounds.

People are stood in for by a script that goes through the real HTTP interface.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SENTENCES
from forking import PREFERENT
from labelling import Person, serving

from preferent import files
from preferent.data import datasets, judgments
from preferent.data.types import Thumb
from preferent.files import read_json, write_jsonl

pytestmark = pytest.mark.acceptance

RECIPE = """
large_model_reference: model
preference_dataset: pairs.jsonl
prompt_sequence_length: 24
target_sequence_length: 8
precision: fp32
kl_coeff: 0.01
reward_model_train_steps: 6
reinforcement_learning_train_steps: 4
sft: {dataset: sft.jsonl, train_steps: 6, batch_size: 8, learning_rate: 1.0e-2}
data: {validation_share: 0.2, test_share: 0.3}
reward: {batch_size: 8, learning_rate: 1.0e-2, validation_every: 3}
ppo: {batch_size: 8, validation_every: 2, learning_rate: 1.0e-2}
infer: {sampling_strategy: temperature_sampling}
"""
LABELLED = 24


def preferent(folder: Path, *words: str) -> str:
    done = subprocess.run([*PREFERENT, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def answer_all(person: Person) -> int:
    """Vote on everything that is asked: the longer answer is better. How many votes it took."""
    queue, votes = person.get("/api/queue"), 0
    while queue["item"] is not None:
        left, right = len(queue["item"]["left"]), len(queue["item"]["right"])
        choice = "tie" if left == right else "left" if left > right else "right"
        queue, votes = person.vote(queue, choice), votes + 1
        assert person.status == 200
    return votes


def thumb_all(person: Person) -> int:
    """Give thumbs up and down in turn. How many it took."""
    queue, votes = person.get("/api/queue"), 0
    while queue["item"] is not None:
        queue, votes = person.vote(queue, ("up", "down")[votes % 2]), votes + 1
        assert person.status == 200
    return votes


@pytest.fixture(scope="module")
def work(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in `one`, what people said of its answers, and the round after it in `two`."""
    folder = tmp_path_factory.mktemp("rounds")
    make_model(seed=6).rename(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    texts = [" ".join(words[i : i + 5]) + f" {i}" for i in range(50)]
    pairs = [
        {"input_text": text, "candidate_0": f" {words[i]} a", "candidate_1": f" {words[i + 3]} be it", "choice": i % 2}
        for i, text in enumerate(texts)
    ]
    answers = [{"input_text": text, "output_text": f" {words[i + 7]} {words[i + 8]}"} for i, text in enumerate(texts)]
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "sft.jsonl", answers)
    preferent(folder, "run", "recipe.yaml", "--out", "one")
    # What `preferent label one --on train` samples before it opens its page; a page is not needed to get that far.
    code = (
        "from pathlib import Path; from preferent.commands import compare_runs; "
        f"compare_runs.sample_of_run(Path('one'), Path('one/labels/train'), {LABELLED})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    place = folder / "one/labels/train"
    files = [str(place / f"answers/{name}/text.jsonl") for name in ("tuned", "base")]
    with serving(place, predictions=files, prompts=place / "prompts.jsonl", models=["tuned", "base"]) as server:
        (folder / "votes").write_text(str(answer_all(server.person())))
        server.stop()
    more = {"prompts": place / "prompts.jsonl", "models": ["tuned", "base"], "thumbs": True, "seed": 1}
    with serving(place, predictions=files, **more) as server:
        (folder / "thumbs").write_text(str(thumb_all(server.person())))
        server.stop()
    preferent(folder, "run", "recipe.yaml", "--out", "two", "--with-labels", "one")
    return folder


def test_every_vote_teaches_the_next_round(work: Path) -> None:
    votes = int((work / "votes").read_text())
    place = work / "one/labels/train"
    files = [datasets.load_preferences(place / f"{name}.jsonl") for name in ("preferences", "ties")]
    assert sum(map(len, files)) == votes > 0 and files[0]
    counts = read_json(work / "two/data/counts.json")
    assert counts["preference"]["kept"] == 50 + votes
    learnt = [
        pair
        for part in ("train", "judge")
        for pair in datasets.load_preferences(work / f"two/data/preference/{part}.jsonl")
    ]
    assert sum(pair.annotator == "me" for pair in learnt) == votes, "nobody was asked about what is held out"


def test_every_thumb_teaches_the_next_round(work: Path) -> None:
    thumbs = int((work / "thumbs").read_text())
    assert LABELLED < thumbs <= 2 * LABELLED
    counts = read_json(work / "two/data/counts.json")
    assert (counts["feedback"]["thumbs"], counts["feedback"]["dropped"]) == (thumbs, {})
    parts = [datasets.load_feedback(work / f"two/data/preference/{part}.jsonl") for part in ("train", "judge")]
    assert sum(isinstance(row, Thumb) for part in parts for row in part) == thumbs
    assert (
        sum(read_json(work / "two/reward/stage.json")["facts"]["counts"]["train"][kind] for kind in ("good", "bad")) > 0
    )


def test_the_base_is_made_once_and_held_out_prompts_stay(work: Path) -> None:
    weights = [work / name / "sft/model/model.safetensors" for name in ("one", "two")]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino
    for part in ("validation", "test"):
        rows = [
            {row["id"] for row in files.read_jsonl(work / name / f"data/prompt/{part}.jsonl")}
            for name in ("one", "two")
        ]
        assert rows[0] == rows[1]


def test_one_report_has_all_rounds_and_people_beside_the_judges(work: Path) -> None:
    metrics = files.read_json(work / "two/comparison/metrics.json")
    assert [side["name"] for side in metrics["sides"]] == ["tuned", "base", "original", "round-1"]
    met = {(rate["a"], rate["b"]) for rate in metrics["rates"]}
    assert ("side.round-1", "b") in met or ("b", "side.round-1") in met
    assert {row["side"] for row in metrics["rating"]["judge"]} == {side["key"] for side in metrics["sides"]}
    with serving(work / "two/labels", out=None, folder=work / "two") as server:
        votes = answer_all(server.person())
        server.stop()
    said = preferent(work, "run", "recipe.yaml", "--out", "two", "--with-labels", "one")
    assert said.count("done already") == len(files.read_json(work / "two/run.json")["stages"]) - 2, "compare and report"
    metrics = files.read_json(work / "two/comparison/metrics.json")
    people = metrics["judges"]["people"]
    identical = metrics["identical"]
    assert people["n"] == votes + identical and people["independent"] and people["annotators"] == 1
    assert {name for pair in metrics["agreement"] for name in pair["judges"]} == {"judge", "reward", "people"}
    rows = [row for row in judgments.read(work / "two/comparison/judgments.jsonl") if row.judge == "people"]
    assert len(rows) == people["n"]
    longer = [row for row in rows if len(row.response_a) != len(row.response_b)]
    assert all((row.choice == "A") == (len(row.response_a) > len(row.response_b)) for row in longer)
    page = (work / "two/report.html").read_text()
    for words in ("Round 1", "people", "Round 0"):
        assert words in page, words
    assert json.dumps("round-1")[1:-1] in page or "round 1" in page.lower()
