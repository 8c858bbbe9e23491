"""Generated posts can be parsed, their faults and labels have their probabilities, the true preference is exact."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer

from preferent import files
from preferent.config import recipe, stage_graph
from preferent.data.formats import row_reader
from preferent.errors import DataError, PreferentError
from preferent.quickstart import guided_run, narration, synthetic_posts, true_preference
from preferent.quickstart.synthetic_posts import Facts

FACTS = Facts("Anna", "lost the keys", "market")
POST = "Ben stayed at the zoo. Today Anna was at the market. She could not find the keys anywhere."


@pytest.mark.parametrize("part", ["demonstration", "preference", "prompt", "test"])
def test_posts_tell_their_facts(part: synthetic_posts.Part) -> None:
    for post in synthetic_posts.posts(0, 500, part):
        assert synthetic_posts.facts_of(post.text + synthetic_posts.ASK) == post.facts
        assert 2 <= len(re.findall(r"[.!]", post.text)) <= 4


def test_no_test_combination_trains_and_every_pair_does() -> None:
    train, test = (set(synthetic_posts.combinations(part)) for part in ("prompt", "test"))
    assert not train & test and len(train | test) == 16 * 16 * 12
    assert len(test) == len(train) / 7
    assert len({(facts.who, facts.what) for facts in train}) == 16 * 16
    assert len({(facts.who, facts.where) for facts in train}) == 16 * 12
    assert len({(facts.what, facts.where) for facts in train}) == 16 * 12
    assert {post.facts for post in synthetic_posts.posts(3, 768, "test")} == test


def test_posts_are_functions_of_seed_and_part() -> None:
    texts = [post.text for post in synthetic_posts.posts(0, 20, "prompt")]
    assert [post.text for post in synthetic_posts.posts(0, 30, "prompt")][:20] == texts
    assert [post.text for post in synthetic_posts.posts(1, 20, "prompt")] != texts
    assert [post.text for post in synthetic_posts.posts(0, 20, "preference")] != texts


def test_a_foreign_text_has_no_facts() -> None:
    with pytest.raises(DataError, match="is not a post of the quickstart"):
        synthetic_posts.facts_of("A text from elsewhere.")


@pytest.mark.parametrize(
    ("text", "ended", "expected"),
    [
        (" Anna lost the keys at the market.", True, 3.0),
        (" Anna lost the keys at the market.", False, 2.0),
        (" Anna could not find the keys anywhere at the market.", True, 2.8),
        (" Anna lost the keys.", True, 2.0),
        (" Ben lost the keys at the market.", True, 1.0),
        (" Anna and Ben lost the keys at the market.", True, 0.9),
        (" Anna lost the keys at the market and the zoo.", True, 0.8),
        (" Anna lost the keys and saw a fire at the market.", True, 0.7),
        (" Anna lost the keys at the market. It was raining.", True, 2.8),
        (" Annabel lost the keysat the market.", True, 2.0),
        ("", True, 0.0),
    ],
)
def test_utility_is_what_it_says(text: str, ended: bool, expected: float) -> None:
    assert true_preference.utility(FACTS, text, ended) == pytest.approx(expected, abs=1e-12)
    assert true_preference.faithful(FACTS, text) == (
        " Anna " in text and "Ben" not in text and expected > 1.9 and "market" in text
    )


@pytest.mark.parametrize("faults", [synthetic_posts.HURRIED, synthetic_posts.CARELESS])
def test_drafts_have_their_faults_as_often_as_said(faults: synthetic_posts.Faults) -> None:
    count = 8000
    written = synthetic_posts.posts(0, count, "demonstration")
    drafts = guided_run._drafts(0, "demonstration", written, faults)
    pairs = list(zip(written, drafts, strict=True))
    right_where = 1 - faults.no_where - faults.wrong_where
    shares = [
        (faults.wrong_who, np.mean([not text.startswith(f" {post.facts.who}") for post, text in pairs])),
        (faults.no_where, np.mean([not any(place in text for place in synthetic_posts.PLACES) for _, text in pairs])),
        (faults.rambles, np.mean([any(remark in text for remark in synthetic_posts.REMARKS) for _, text in pairs])),
        ((1 - faults.rambles) * faults.repeats, np.mean([not synthetic_posts.ends(text) for text in drafts])),
        (
            (1 - faults.wrong_who) * (1 - faults.wrong_what) * right_where,
            np.mean([true_preference.faithful(post.facts, text) for post, text in pairs]),
        ),
    ]
    for expected, share in shares:
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count), (expected, share)


def test_annotator_is_bradley_terry() -> None:
    pair = (" Anna lost the keys.", " Anna lost the keys at the market.")
    chance = 1 / (1 + math.exp(-true_preference.SHARPNESS))
    assert true_preference.choose(FACTS, pair, chance - 1e-9) == 1
    assert true_preference.choose(FACTS, pair, chance + 1e-9) == 0
    assert true_preference.choose(FACTS, pair[::-1], 1 - chance - 1e-9) == 1


def test_written_files_are_read_without_a_loss(tmp_path: Path) -> None:
    guided_run.demonstrations(0, 50, tmp_path / "demonstrations.jsonl")
    guided_run.preferences(0, 400, tmp_path / "preferences.jsonl")
    guided_run.prompts(0, 50, tmp_path / "prompts.jsonl")
    for name, kind, count in (
        ("demonstrations", "demonstration", 50),
        ("prompts", "prompt", 50),
        ("preferences", "preference", 400),
    ):
        assert row_reader.detect([str(tmp_path / f"{name}.jsonl")])[0] == kind
        reading = row_reader.read_rows([str(tmp_path / f"{name}.jsonl")], kind, "auto")
        assert len(reading.records) == reading.read and not reading.dropped and 0.97 * count < reading.read <= count
    agreements, chances = [], []
    for row in files.read_jsonl(tmp_path / "preferences.jsonl"):
        facts = synthetic_posts.facts_of(row["input_text"])
        assert row["candidate_0"] != row["candidate_1"] and true_preference.faithful(facts, row["reference"])
        utility_0, utility_1 = (
            true_preference.utility(facts, row[f"candidate_{i}"], synthetic_posts.ends(row[f"candidate_{i}"]))
            for i in (0, 1)
        )
        agreements.append((utility_1 > utility_0) == (row["choice"] == 1))
        chances.append(1 / (1 + math.exp(-true_preference.SHARPNESS * abs(utility_1 - utility_0))))
    assert abs(np.mean(agreements) - np.mean(chances)) < 0.06
    assert 0.75 < np.mean(chances) < 0.95


def test_every_word_is_one_token_and_posts_are_short(tmp_path: Path) -> None:
    scratch = pytest.importorskip("preferent.commands.inference.from_scratch")
    guided_run.demonstrations(0, guided_run.DEMONSTRATIONS, tmp_path / "rows.jsonl")
    texts = list(scratch.read(tmp_path / "rows.jsonl"))
    tokenizer: Tokenizer = scratch.train_tokenizer(texts, guided_run.VOCABULARY)
    for post in synthetic_posts.posts(0, 768, "test"):
        prompt = tokenizer.encode(post.text + synthetic_posts.ASK)
        assert len(prompt) <= 48
        answer = synthetic_posts.summary(post.facts)
        whole = tokenizer.encode(post.text + synthetic_posts.ASK + answer)
        assert whole.tokens[len(prompt) :] == ["▁" + word for word in answer[1:-1].split()] + ["."]


def prediction(text: str, ended: bool = True, post: str = POST) -> dict:
    return {
        "inputs": {"inputs_pretokenized": post + synthetic_posts.ASK},
        "prediction": text,
        "ended": ended,
        "kl": 1.5,
    }


def test_verdict_counts_by_the_truth() -> None:
    good, short, wrong = " Anna lost the keys at the market.", " Anna lost the keys.", " Ben lost the keys at the zoo."
    base = [prediction(short), prediction(good), prediction(good), prediction(wrong, False)]
    tuned = [prediction(good), prediction(good), prediction(wrong), prediction(good)]
    verdict = true_preference.verdict(base, tuned)
    assert true_preference.true_scores(base) == [2.0, 3.0, 3.0, -2.0]
    assert (verdict["win"], verdict["tie"], verdict["loss"], verdict["n"], verdict["win_rate"]) == (2, 1, 1, 4, 0.625)
    assert (verdict["n_both_ended"], verdict["win_rate_both_ended"]) == (3, 0.5)
    assert (verdict["faithful_base"], verdict["faithful_tuned"]) == (0.5, 0.75)
    assert (verdict["ended_base"], verdict["ended_tuned"], verdict["kl_tuned"]) == (0.75, 1.0, 1.5)


def test_curve_sets_truth_beside_reward() -> None:
    answers = [" Anna lost the keys.", " Anna lost the keys at the market."]
    samples = [{"step": s, "input": POST, "answer": answers[s // 5], "ended": True} for s in range(10)]
    metrics = [{"step": 0, "validation/score": 1.0}]
    metrics += [{"step": s + 1, "reward": float(s // 5), "kl_loss": 0.5 * (s // 5)} for s in range(10)]
    assert true_preference.curve(samples, metrics) == [
        {"kl": 0.0, "proxy": 0.0, "gold": 0.0},
        {"kl": 0.5, "proxy": 1.0, "gold": true_preference.SHARPNESS},
    ]


def test_recipe_is_one_and_commands_are_those_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preferent.cli import arguments

    done: list[list[str]] = []

    def run_here(argv: list[str], **_: Any) -> int:
        arguments.parser().parse_args(argv[3:])
        done.append(argv[3:])
        if argv[3] != "scratch":
            return 5
        files.write_json(tmp_path / "lesson" / "model" / "config.json", {})
        return 0

    monkeypatch.setattr(guided_run.child_process, "run_here", run_here)
    with pytest.raises(PreferentError) as caught:
        guided_run.quickstart(tmp_path, 7, ["threads=1"])
    assert caught.value.exit_code == 5 and [words[0] for words in done] == ["scratch", "data"]
    assert recipe.load(tmp_path / "recipe.yaml")[0].threads == 1
    loaded, ignored = recipe.load(tmp_path / "lesson" / "recipe.yaml")
    assert not ignored and loaded.seed == 7 and loaded.sft is not None
    assert loaded.target_sequence_length == synthetic_posts.ANSWER_TOKENS
    for paths in (loaded.preference_dataset, loaded.prompt_dataset, loaded.eval_dataset, loaded.sft.dataset):
        assert Path(str(paths)).is_file()
    assert loaded.infer.max_prompts is not None and loaded.infer.max_prompts > 300


def test_the_ceiling_is_what_the_annotator_leaves() -> None:
    pair = {
        "input_text": POST,
        "candidate_0": " Anna lost the keys at the market.",
        "candidate_1": " Anna lost the keys.",
    }
    same = pair | {"candidate_1": " Anna made music at the market.", "candidate_0": " Anna won the race at the market."}
    assert true_preference.ceiling([pair]) == pytest.approx(1 / (1 + math.exp(-true_preference.SHARPNESS)))
    assert true_preference.ceiling([pair, same]) == pytest.approx((true_preference.ceiling([pair]) + 0.5) / 2)


def test_every_step_is_introduced_with_figures_of_earlier_steps(tmp_path: Path) -> None:
    files.write_jsonl(
        tmp_path / "sft" / "metrics.jsonl", [{"step": s, "loss": 7.0 if s < 10 else 0.25} for s in range(40)]
    )
    files.write_json(tmp_path / "reward" / "quality.json", {"test": {"accuracy": 0.77}})
    pair = {
        "input_text": POST,
        "candidate_0": " Anna lost the keys at the market.",
        "candidate_1": " Anna lost the keys.",
    }
    files.write_jsonl(tmp_path / "data/preference/test.jsonl", [pair])
    parsed = recipe.parse(yaml.safe_load(guided_run.RECIPE.format(lesson="l", answer_tokens=24, seed=0)))[0]
    texts = {task.name: narration.introduction(tmp_path, task.name) for task in stage_graph.build(parsed)}
    assert [name for name, text in texts.items() if text is None] == ["infer-tuned", "infer-original", "report"]
    assert "fell to 0.25" in str(texts["reward"])
    assert "agrees with the annotator in 77%" in str(texts["judge"]) and "agree in 88%" in str(texts["judge"])
    assert "{" not in "".join(map(str, texts.values()))


def test_its_model_reads_what_a_recipe_of_defaults_asks_for() -> None:
    defaults = recipe.parse({"large_model_reference": "m", "preference_dataset": "p.jsonl"})[0]
    assert defaults.prompt_sequence_length + defaults.target_sequence_length <= guided_run.POSITIONS


def test_judging_writes_the_verdict_for_the_report(tmp_path: Path) -> None:
    for side, text in (("base", " Anna lost the keys."), ("tuned", " Anna lost the keys at the market.")):
        files.write_jsonl(tmp_path / "predictions" / side / "text.jsonl", [prediction(text)] * 4)
    sample = {"step": 0, "input": POST, "answer": " Anna lost the keys.", "ended": True}
    files.write_jsonl(tmp_path / "policy" / "rollouts" / "samples.jsonl", [sample])
    files.write_jsonl(tmp_path / "policy" / "metrics.jsonl", [{"step": 1, "reward": 0.25, "kl_loss": 0.0}])
    gold = guided_run.judge(tmp_path)
    assert gold["win_rate"] == 1.0 and gold["curve"] == [{"kl": 0.0, "proxy": 0.25, "gold": 0.0}]
    assert files.read_json(tmp_path / "comparison" / "gold.json") == gold
    files.write_json(
        tmp_path / "comparison" / "metrics.json",
        {"headline": "judge", "judges": {"judge": {"win_rate": 0.9}, "reward": {"win_rate": 0.95}}},
    )
    text = guided_run.summarize(tmp_path, gold)
    assert "wins 100%" in text and "before: Anna lost the keys." in text
    assert "says 90%. The reward model\nsays 95%;" in text
    assert "KL to the base:                 1.5 nats per answer." in text
    assert f"tail -3 {tmp_path}/data/prompt/test.jsonl | " in text and f"{tmp_path}/sft/model:\n" in text
    assert f"--from ppo --of {tmp_path}\n" in text, "trained stages are not trained again"
