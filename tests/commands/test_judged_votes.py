"""`agree --judge`: a judge measured against people's votes, on the pairs in their files."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Answer, Asked, completion, prefers, serving

from preferent import files
from preferent.cli import agree_verb, arguments
from preferent.errors import DataError, UsageError

QUALITY = {"low": 1, "middle": 2, "high": 3}
MEETINGS = [("low", "middle"), ("middle", "high"), ("high", "low")]


def answer(model: str, prompt: int) -> str:
    return f"{model} answer {prompt} of quality {QUALITY[model]}"


def rows() -> list[dict[str, Any]]:
    """Four prompts, on each of which three models meet: people prefer the better, but for one slip."""
    voted = []
    for prompt in range(4):
        for a, b in MEETINGS:
            right = 0 if QUALITY[a] > QUALITY[b] else 1
            row = {"messages": [{"author": "user", "content": f"question {prompt}?"}]}
            row |= {"candidate_0": answer(a, prompt), "candidate_1": answer(b, prompt), "annotator": "ann"}
            slip = (prompt, a) == (0, "low")
            voted.append(row | {"choice": 1 - right if slip else right, "model_0": a, "model_1": b})
    return voted


def better(first: str, second: str) -> bool:
    return int(first[-1]) > int(second[-1])


def wavering(asked: Asked) -> Answer:
    """The better answer; but the second time about prompt 1, and of equal quality, the first."""
    label = prefers(asked, better)
    again = asked.before == 1 and "question 1?" in asked.text
    return completion(f"Verdict: {1 if again else label}")


def agree(*words: object) -> dict[str, Any]:
    given = arguments.parser().parse_args(["agree", *map(str, words), "--json"])
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *texts, **_: printed.extend(map(str, texts)))
        agree_verb.do_agree(given)
    figures: dict[str, Any] = json.loads(printed[-1])
    return figures


def test_a_judge_is_measured_against_the_votes_in_a_file(tmp_path: Path) -> None:
    files.write_jsonl(tmp_path / "votes.jsonl", rows())
    with serving(wavering) as endpoint:
        words = (tmp_path / "votes.jsonl", "--judge", f"{endpoint.url}#wise", "--votes", 2, "--out", tmp_path / "out")
        figures = agree(*words)
        assert sum(endpoint.counts.values()) == 12 * 2 * 2
        assert agree(*words) == figures
        assert sum(endpoint.counts.values()) == 12 * 2 * 2, "replies are kept"
        assert not [body for body in endpoint.bodies if '"author"' in str(body)], "the judge reads turns, not JSON"
    against = figures["against_people"]["wise"]
    assert (against["n"], against["accuracy"]) == (12, pytest.approx(11 / 12))
    assert figures["pairs"][0]["kappa"] is not None
    judge = figures["judges"]["wise"]
    assert judge["ratings"] == {"models": 3, "spearman": 1.0}
    assert judge["flips"]["n"] == 24
    assert judge["flips"]["share"] == pytest.approx(3 / 24), "of prompt 1, in the order with the worse first"
    assert judge["flips"]["interval"][0] < 3 / 24 < judge["flips"]["interval"][1]
    assert judge["order"]["first_slot"] == pytest.approx((24 + 3) / 48)


def test_several_people_are_the_truth_together_and_further_judges_stay_judges(tmp_path: Path) -> None:
    ann, bob = rows(), [row | {"annotator": "bob"} for row in rows()]
    files.write_jsonl(tmp_path / "people.jsonl", ann + bob)
    other = [row | {"annotator": "other", "choice": 1 - row["choice"]} for row in rows()]
    files.write_jsonl(tmp_path / "other.jsonl", other)
    with serving(wavering) as endpoint:
        words = ("--people", tmp_path / "people.jsonl", "--judge", f"{endpoint.url}#wise", "--out", tmp_path / "out")
        figures = agree(tmp_path / "other.jsonl", *words)
        assert sum(endpoint.counts.values()) == 12 * 2, "a pair that two people saw is judged once"
    assert {name: judge["accuracy"] for name, judge in figures["against_people"].items()} == {
        "other": 0.0,
        "wise": pytest.approx(11 / 12),
    }
    assert figures["judges"]["wise"]["flips"] is None


def test_without_a_judge_no_model_is_called_and_mistakes_are_named(tmp_path: Path) -> None:
    files.write_jsonl(tmp_path / "votes.jsonl", rows())
    assert "judges" not in agree(tmp_path / "votes.jsonl")
    with pytest.raises(UsageError, match="need --judge"):
        agree(tmp_path / "votes.jsonl", "--votes", 2)
    with pytest.raises(UsageError, match="people's verdicts are a FILE"):
        agree(tmp_path / "votes.jsonl", "--judge", f"people={tmp_path / 'votes.jsonl'}")
    arena = {"question_id": "q", "model_a": "x", "model_b": "y", "winner": "model_a"}
    files.write_jsonl(tmp_path / "arena.jsonl", [arena])
    with pytest.raises(DataError, match=r"arena\.jsonl:1: the row holds no two answers"):
        agree(tmp_path / "arena.jsonl", "--judge", "http://127.0.0.1:9/v1#x")
