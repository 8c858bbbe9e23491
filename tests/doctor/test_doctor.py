"""The doctor: a healthy run has no finding; each sickness, put into it alone, has its own and no other."""

import copy
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preferent.cli import main
from preferent.data.predictions import Answer
from preferent.doctor import (
    answer_rules,
    comparison_rules,
    curve_rules,
    data_rules,
    dpo_rules,
    examination,
    findings,
    policy_rules,
    reward_rules,
    run_history,
)
from preferent.doctor.findings import SICK, SUSPICIOUS
from preferent.errors import DataError, UsageError
from preferent.evaluation.comparison_summary import verdict as verdict_of
from preferent.evaluation.inference import compare
from preferent.evaluation.judge_results import by_scores

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 40
Files = dict[str, Any]
Change = Callable[[Files], object]


def curve(files: Files, folder: str, figure: str, value: Callable[[int], float | None]) -> None:
    """Give a figure of a folder's metrics its value at every step that has one."""
    for row in files[f"{folder}/metrics.jsonl"]:
        if figure in row:
            row[figure] = value(row["step"])


def scorer_rows() -> list[dict[str, Any]]:
    rows = []
    for step in range(1, STEPS + 1):
        row = {"step": step, "rank_loss": 0.7 - 0.004 * step, "learning_rate": 1e-4, "gradient_norm": 1.0}
        rows.append(row | ({"validation/loss": 0.6} if step % 10 == 0 else {}))
    return rows


def policy_rows() -> list[dict[str, Any]]:
    def validation(step: int) -> dict[str, float]:
        return {"validation/kl": 0.05 * step, "validation/objective": 0.01 * step, "validation/ended": 0.97}

    rows: list[dict[str, Any]] = [{"step": 0} | validation(0)]
    for step in range(1, STEPS + 1):
        kl = 0.05 * (step - 1)
        row = {"step": step, "reward": 0.02 * step, "objective/scores": 0.02 * step, "learning_rate": 1e-4}
        row |= {"objective/kl": kl, "objective/kl_k1": kl + 0.01 * (-1) ** step, "objective/kl_coeff": 0.1}
        row |= {"objective/entropy": 2.0 - 0.02 * step, "val/explained_variance": 0.5, "val/ratio": 1.001}
        row["val/first_ratio"] = 1.0
        row |= {"policy/approxkl": 0.005, "policy/clipfrac": 0.05, "tokens/length": 20.0, "tokens/ended": 0.97}
        row |= {"policy/gradient_norm": 0.5, "val/gradient_norm": 0.4}
        rows.append(row | (validation(step) if step % 10 == 0 else {}))
    return rows


def direct(files: Files) -> None:
    """Make it a healthy run whose policy learned from the preferences themselves."""
    for name in [name for name in files if name.startswith(("reward/", "policy/"))]:
        del files[name]
    del files["comparison/metrics.json"]["judges"]["reward"]
    del files["comparison/metrics.json"]["agreement"]
    pairs = {"pairs": 3000, "ties": 0, "truncated": 30}
    facts = {"best_step": STEPS, "steps": STEPS, "counts": {"train": dict(pairs), "validation": dict(pairs)}}
    fields = {"method": "dpo", "dpo.loss": "sigmoid", "kl_coeff": 0.1}
    files[POLICY] = {"stage": "dpo", "fields": fields, "facts": facts}
    rows = []
    for step in range(1, STEPS + 1):
        row = {"step": step, "loss": 0.6931 - 0.004 * (step - 1), "accuracy": 0.5 + 0.006 * step, "margin": 0.02 * step}
        row |= {"rewards/chosen": 0.005 * step, "rewards/rejected": -0.015 * step}
        row |= {"log_probs/chosen": -20.0, "log_probs/rejected": -20.0 - 0.1 * step}
        row |= {"learning_rate": 1e-4, "gradient_norm": 1.0}
        held_out = {"validation/loss": 0.69 - 0.002 * step, "validation/accuracy": 0.7, "validation/margin": 0.3}
        rows.append(row | (held_out if step % 10 == 0 else {}))
    files["policy/metrics.jsonl"] = rows


def samples() -> list[dict[str, Any]]:
    return [
        {"step": s, "prompt_index": i, "answer": f"answer {i}", "ended": i > 0, "scores": {"reward": 0.2 * i - 1.0}}
        for s in (0, STEPS - 1)
        for i in range(16)
    ]


FACTS = {"accuracy": {"by": "held_out", "share": 0.7, "interval": [0.65, 0.75], "lower_99": 0.63, "count": 300}}
FACTS["accuracy"]["rules"] = {
    "longer": {"share": 0.52, "lead_interval": [0.06, 0.3]},
    "words": {"share": 0.6, "lead_interval": [-0.02, 0.22]},
}


def verdict(n: int = 200) -> dict[str, Any]:
    """A comparison as the stage writes it: tuned wins three in four."""
    a = [Answer(str(i), f"p{i}", "", f"tuned {i}", tokens=20 + i % 3, ended=True) for i in range(n)]
    b = [Answer(str(i), f"p{i}", "", f"base {i}", tokens=19 + i % 3, ended=True) for i in range(n)]
    scores = {"a": np.array([1.0 if i % 4 else -1.0 for i in range(n)]), "b": np.zeros(n)}
    answers = {"a": a, "b": b}
    opinions = [by_scores(name, scores, answers, None, compare.SIDES, FACTS) for name in ("judge", "reward")]
    found: dict[str, Any] = verdict_of(answers, opinions, "judge", compare.SIDES)[1]
    return found


def healthy() -> Files:
    quality = {"count": 300, "loss": 0.6, "accuracy": 0.7, "ece": 0.04}
    quality |= {"length_correlation": 0.1, "longer_accuracy": 0.52}
    bins = [{"confidence": 0.6, "accuracy": 0.6, "count": 150}, {"confidence": 0.8, "accuracy": 0.8, "count": 150}]
    kept = {"read": 6000, "kept": 6000, "dropped": {}}
    pairs = {"pairs": 3000, "ties": 0, "truncated": 30}
    files: Files = {
        "data/counts.json": {
            "preference": kept | {"ties": 10, "duplicates": 5, "contradictory": 20},
            "prompt": kept,
            "parts": {"prompt": {"train": 1000, "validation": 100, "test": 200}},
        },
        "data/prompt/train.jsonl": [{"input_text": "p", "id": "1"}],
        "sft/stage.json": {"fields": {}, "facts": {}},
        "sft/metrics.jsonl": [
            {"step": s, "loss": 2.0, "learning_rate": 1e-3, "gradient_norm": 1.0, "validation/loss": 3 - 0.01 * s}
            for s in range(1, STEPS + 1)
        ],
        "policy/metrics.jsonl": policy_rows(),
        "policy/score.json": {
            "terms": [{"name": "reward", "weight": 1.0, "members": {"reward": {"bias": -1.0, "gain": 1.0}}}]
        }
        | {"prompts": 256},
        "policy/rollouts/samples.jsonl": samples(),
        "policy/stage.json": {
            "schema": 2,
            "fields": {"ppo.epochs": 4, "ppo.minibatches": 1, "ppo.batch_size": 64, "kl_coeff": 0.1}
            | {"ppo.kl_target": None, "ppo.kl_budget": None, "reward.missing_eos_score": -1.0},
            "facts": {"best_step": STEPS, "steps": STEPS},
        },
        "comparison/metrics.json": verdict(),
    }
    for name in ("policy", "reward"):
        files[f"{name}/model/tokenizer.json"] = {"model": {"type": "BPE"}}
        files[f"{name}/model/tokenizer_config.json"] = {"eos_token": "</s>", "chat_template": "{{ messages }}"}
    for name in ("reward", "judge"):
        facts = {"epochs": 2.0, "counts": {"train": dict(pairs), "validation": dict(pairs)}}
        files[f"{name}/stage.json"] = {"fields": {}, "facts": facts, "inputs": {"train": name}}
        files[f"{name}/metrics.jsonl"] = scorer_rows()
        files[f"{name}/quality.json"] = {"test": dict(quality), "reliability": bins, "best_step": 40} | {
            "rules": {"words": {"share": 0.6, "lead": 0.1}}
        }
    return copy.deepcopy(files)


def written(root: Path, change: Change | None = None) -> Path:
    files = healthy()
    if change is not None:
        change(files)
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        rows = value if isinstance(value, list) else [value]
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def found(root: Path) -> list[findings.Finding]:
    return examination.examine(run_history.read(root))


def put(path: str, keys: str, value: Any) -> Change:
    """A change of one value of a JSON file; `keys` are separated by spaces, since fields have dots in their names."""

    def change(files: Files) -> None:
        *outer, last = keys.split()
        target = files[path]
        for key in outer:
            target = target[key]
        target[last] = value

    return change


def gain(value: float) -> Change:
    return lambda files: files["policy/score.json"]["terms"][0]["members"]["reward"].update(gain=value)


def drawn(folder: str, figure: str, value: Callable[[int], float | None]) -> Change:
    return lambda files: curve(files, folder, figure, value)


def both(*changes: Change) -> Change:
    return lambda files: [change(files) for change in changes]


def rising(high: float) -> Callable[[int], float]:
    return lambda step: high * (step - 1) / STEPS


def same_answers(count: int) -> Change:
    """In the last step, `count` of the 16 rollouts have one answer."""
    return lambda files: [row.update(answer="yes") for row in files["policy/rollouts/samples.jsonl"][-count:]]


def scored(value: Callable[[int], float]) -> Change:
    return lambda files: [
        row["scores"].update(reward=value(row["prompt_index"])) for row in files["policy/rollouts/samples.jsonl"]
    ]


def first_rollouts(count: int) -> Change:
    """Only the first rollouts of each step, all of one score."""
    return lambda files: files.update(
        {
            "policy/rollouts/samples.jsonl": [
                row | {"scores": {"reward": 0.25}} for row in samples() if row["prompt_index"] < count
            ]
        }
    )


def noisy(noise: float) -> Callable[[int], float]:
    """A k1 estimate that lies 0.15 above the KL on average, and scatters."""
    return lambda step: 0.05 * (step - 1) + 0.15 + noise * (-1) ** step


def judged(judge: tuple[float, float], reward: tuple[float, float]) -> Change:
    return both(
        put(VERDICT, "judges judge interval", list(judge)), put(VERDICT, "judges reward interval", list(reward))
    )


def chat(template: str) -> Change:
    """The prompts are conversations, and this is the reward model's chat template."""

    def change(files: Files) -> None:
        files["data/prompt/train.jsonl"][0]["messages"] = []
        files["reward/model/tokenizer_config.json"]["chat_template"] = template

    return change


COUNTS, POLICY, VERDICT = "data/counts.json", "policy/stage.json", "comparison/metrics.json"
REWARD, JUDGE = "reward/stage.json", "judge/stage.json"
QUALITY, JUDGE_QUALITY = "reward/quality.json", "judge/quality.json"


def bins(confidence: float) -> list[dict[str, float]]:
    return [{"confidence": confidence, "accuracy": 0.7, "count": 300}]


def lengths(mean: float, error: float | None = 0.5) -> dict[str, float | None]:
    return {"mean_a": mean, "mean_b": 20.0, "difference": mean - 20.0, "standard_error": error}


CASES: dict[str, tuple[str, Change, Change]] = {
    "dropped-rows": (
        SUSPICIOUS,
        put(COUNTS, "prompt dropped", {"prompt is empty": 400}),
        put(COUNTS, "prompt dropped", {"prompt is empty": 250}),
    ),
    "duplicated-data": (
        SUSPICIOUS,
        put(COUNTS, "preference duplicates", 400),
        put(COUNTS, "preference duplicates", 250),
    ),
    "contradictory-pairs": (
        SUSPICIOUS,
        put(COUNTS, "preference contradictory", 1000),
        put(COUNTS, "preference contradictory", 800),
    ),
    "many-ties": (SUSPICIOUS, put(COUNTS, "preference ties", 3100), put(COUNTS, "preference ties", 2900)),
    "few-pairs": (
        SUSPICIOUS,
        put(JUDGE, "facts counts train pairs", 1900),
        put(JUDGE, "facts counts train pairs", 2000),
    ),
    "few-validation-pairs": (
        SUSPICIOUS,
        put(REWARD, "facts counts validation pairs", 99),
        put(REWARD, "facts counts validation pairs", 100),
    ),
    "truncated-pairs": (
        SUSPICIOUS,
        put(REWARD, "facts counts train truncated", 400),
        put(REWARD, "facts counts train truncated", 250),
    ),
    "few-prompts": (SUSPICIOUS, put(COUNTS, "parts prompt train", 255), put(COUNTS, "parts prompt train", 256)),
    "many-passes": (SUSPICIOUS, put(POLICY, "fields ppo.batch_size", 1280), put(POLICY, "fields ppo.batch_size", 1200)),
    "few-validation-prompts": (
        SUSPICIOUS,
        put(COUNTS, "parts prompt validation", 63),
        put(COUNTS, "parts prompt validation", 64),
    ),
    "template-mismatch": (SICK, chat("{{ other }}"), chat("{{ messages }}")),
    "tokenizers-differ": (
        SUSPICIOUS,
        put("reward/model/tokenizer_config.json", "eos_token", "<end>"),
        put("reward/model/tokenizer_config.json", "pad_token", "<pad>"),
    ),
    "not-finite": (
        SICK,
        drawn("judge", "gradient_norm", lambda step: None if step == 30 else 1.0),
        drawn("policy", "val/explained_variance", lambda step: None),
    ),
    "learning-rate-zero": (
        SICK,
        drawn("reward", "learning_rate", lambda step: 8e-10),
        drawn("reward", "learning_rate", lambda step: 1.5e-9 if step < 20 else 0.0),
    ),
    "warmup-unfinished": (
        SUSPICIOUS,
        drawn("policy", "learning_rate", lambda step: 1e-6 * step),
        drawn("policy", "learning_rate", lambda step: 1e-6 * min(step, STEPS - 1)),
    ),
    "no-gradient": (
        SICK,
        drawn("policy", "policy/gradient_norm", lambda step: 0.0),
        drawn("policy", "policy/gradient_norm", lambda step: 0.01),
    ),
    "gradient-spikes": (
        SUSPICIOUS,
        drawn("policy", "policy/gradient_norm", lambda step: 30.0 if step == 20 else 1.0),
        drawn("policy", "policy/gradient_norm", lambda step: {1: 30.0, 20: 15.0}.get(step, 1.0)),
    ),
    "sft-over-trained": (
        SUSPICIOUS,
        drawn("sft", "validation/loss", lambda step: 2.0 + abs(step - 20) / 100),
        drawn("sft", "validation/loss", lambda step: 2.0 + abs(step - 20) / 250),
    ),
    "loss-at-chance": (
        SICK,
        drawn("reward", "rank_loss", lambda step: 0.69),
        drawn("reward", "rank_loss", lambda step: 0.67),
    ),
    "no-better-than-trivial": (
        SICK,
        both(put(QUALITY, "test longer_accuracy", 0.28), put(QUALITY, "test accuracy", 0.71)),
        both(put(QUALITY, "test longer_accuracy", 0.38), put(QUALITY, "test accuracy", 0.71)),
    ),
    "over-confident": (
        SUSPICIOUS,
        put(JUDGE_QUALITY, "reliability", bins(0.82)),
        put(JUDGE_QUALITY, "reliability", bins(0.78)),
    ),
    "no-better-than-words": (
        SUSPICIOUS,
        put(JUDGE_QUALITY, "rules words lead", 0.0),
        put(JUDGE_QUALITY, "rules words lead", 0.01),
    ),
    "scores-follow-length": (
        SUSPICIOUS,
        put(QUALITY, "test length_correlation", -0.6),
        put(QUALITY, "test length_correlation", 0.45),
    ),
    "over-trained": (
        SUSPICIOUS,
        drawn("reward", "validation/loss", lambda step: 0.6 if step < 20 else 0.8),
        drawn("reward", "validation/loss", lambda step: 0.6 if step < 20 else 0.7),
    ),
    "still-improving": (
        SUSPICIOUS,
        drawn("judge", "validation/loss", lambda step: 0.7 - 0.005 * step),
        drawn("judge", "validation/loss", lambda step: 0.61 - 0.0003 * step),
    ),
    "many-epochs": (SUSPICIOUS, put(JUDGE, "facts epochs", 16.33), put(JUDGE, "facts epochs", 8.0)),
    "negative-kl": (
        SICK,
        drawn("policy", "validation/kl", lambda step: -0.2 if step == 20 else 0.01 * step),
        drawn("policy", "validation/kl", lambda step: -8e-4 if step == 0 else 0.01 * step),
    ),
    "first-kl": (
        SICK,
        drawn("policy", "validation/kl", lambda step: 1.5e-3 + 0.01 * step),
        drawn("policy", "validation/kl", lambda step: 8e-4 + 0.01 * step),
    ),
    "first-ratio": (
        SICK,
        drawn("policy", "val/first_ratio", lambda step: 1.00002 if step == 7 else 1.0),
        drawn("policy", "val/first_ratio", lambda step: 1.000008),
    ),
    "kl-estimates-disagree": (
        SICK,
        drawn("policy", "objective/kl_k1", lambda step: 0.06 * (step - 1)),
        drawn("policy", "objective/kl_k1", lambda step: 0.0535 * (step - 1)),
    ),
    "no-leash": (SUSPICIOUS, put(POLICY, "fields kl_coeff", 0.0), put(POLICY, "fields kl_coeff", 0.01)),
    "kl-explodes": (
        SICK,
        both(drawn("policy", "objective/kl", rising(25)), drawn("policy", "objective/kl_k1", rising(25))),
        both(drawn("policy", "objective/kl", rising(19)), drawn("policy", "objective/kl_k1", rising(19))),
    ),
    "kl-off-target": (SUSPICIOUS, put(POLICY, "fields ppo.kl_target", 1.0), put(POLICY, "fields ppo.kl_target", 1.5)),
    "kl-over-budget": (SUSPICIOUS, put(POLICY, "fields ppo.kl_budget", 1.2), put(POLICY, "fields ppo.kl_budget", 1.4)),
    "policy-does-not-move": (
        SUSPICIOUS,
        both(drawn("policy", "objective/kl", rising(0.009)), drawn("policy", "objective/kl_k1", rising(0.009))),
        both(drawn("policy", "objective/kl", rising(0.02)), drawn("policy", "objective/kl_k1", rising(0.02))),
    ),
    "clipped-too-often": (
        SUSPICIOUS,
        drawn("policy", "policy/clipfrac", lambda step: 0.3),
        drawn("policy", "policy/clipfrac", lambda step: 0.3 if step == 1 else 0.15),
    ),
    "updates-too-large": (
        SUSPICIOUS,
        drawn("policy", "policy/approxkl", lambda step: 0.08),
        drawn("policy", "policy/approxkl", lambda step: 0.04),
    ),
    "critic-explains-nothing": (
        SUSPICIOUS,
        drawn("policy", "val/explained_variance", lambda step: -0.1),
        drawn("policy", "val/explained_variance", lambda step: -2.0 if step < 20 else 0.1),
    ),
    "entropy-collapse": (
        SUSPICIOUS,
        drawn("policy", "objective/entropy", lambda step: 2.0 if step < 10 else 0.2),
        drawn("policy", "objective/entropy", lambda step: 2.0 if step < 10 else 0.4),
    ),
    "reward-does-not-rise": (
        SUSPICIOUS,
        drawn("policy", "objective/scores", lambda step: 0.5 - 0.001 * step),
        drawn("policy", "objective/scores", lambda step: 0.5 + 0.001 * step),
    ),
    "never-better": (SICK, put(POLICY, "facts best_step", 0), put(POLICY, "facts best_step", 10)),
    "past-its-best": (
        SUSPICIOUS,
        drawn("policy", "validation/objective", lambda step: 1.0 if step == 20 else 0.01 * step),
        drawn("policy", "validation/objective", lambda step: 0.6 if step == 20 else 0.01 * step),
    ),
    "prefers-the-rejected": (
        SICK,
        both(direct, drawn("policy", "margin", lambda step: -0.001 * step)),
        both(direct, drawn("policy", "margin", lambda step: 0.001 * step - 0.03)),
    ),
    "chosen-given-up": (
        SUSPICIOUS,
        both(direct, drawn("policy", "log_probs/chosen", lambda step: -20.0 if step < 30 else -30.5)),
        both(direct, drawn("policy", "log_probs/chosen", lambda step: -20.0 if step < 30 else -29.5)),
    ),
    "never-below-the-start": (
        SICK,
        both(direct, drawn("policy", "validation/loss", lambda step: 0.694)),
        both(direct, drawn("policy", "validation/loss", lambda step: 0.692)),
    ),
    "pairs-by-heart": (
        SUSPICIOUS,
        both(direct, drawn("policy", "accuracy", lambda step: 0.91)),
        both(direct, drawn("policy", "accuracy", lambda step: 0.89)),
    ),
    "answers-do-not-end": (
        SICK,
        drawn("policy", "tokens/ended", lambda step: 0.45),
        drawn("policy", "tokens/ended", lambda step: 0.4 if step < 20 else 0.85),
    ),
    "reward-rises-with-length": (
        SUSPICIOUS,
        drawn("policy", "tokens/length", lambda step: 20.0 + 0.5 * step),
        drawn("policy", "tokens/length", lambda step: 20.0 + 0.1 * step),
    ),
    "diversity-gone": (SUSPICIOUS, same_answers(12), same_answers(8)),
    "constant-scores": (SICK, scored(lambda i: 0.25 + 2e-7 * i), scored(lambda i: 0.25 + 3e-7 * i)),
    "not-ending-pays": (SICK, scored(lambda i: 0.1 * i - 5.0), scored(lambda i: 0.1 * i - 2.35)),
    "extreme-gain": (SUSPICIOUS, gain(12.0), gain(8.0)),
    "proxy-up-judge-down": (SICK, judged((0.3, 0.45), (0.6, 0.7)), judged((0.52, 0.6), (0.6, 0.7))),
    "tuned-is-worse": (SICK, judged((0.3, 0.45), (0.35, 0.45)), judged((0.55, 0.65), (0.35, 0.45))),
    "verdict-open": (SUSPICIOUS, judged((0.48, 0.56), (0.6, 0.7)), judged((0.51, 0.6), (0.48, 0.56))),
    "judge-not-independent": (
        SUSPICIOUS,
        put(VERDICT, "headline", "reward"),
        put(JUDGE, "inputs train", "something else"),
    ),
    "no-judge": (
        SUSPICIOUS,
        both(put(VERDICT, "headline", None), put(VERDICT, "judges", {})),
        lambda files: files.pop(VERDICT),
    ),
    "judges-disagree": (
        SUSPICIOUS,
        put(VERDICT, "agreement", [{"judges": ["judge", "reward"], "n": 200, "percent": 0.4}]),
        put(VERDICT, "agreement", [{"judges": ["judge", "reward"], "n": 200, "percent": 0.6}]),
    ),
    "judge-follows-length": (
        SUSPICIOUS,
        put(VERDICT, "judges judge length_correlation", 0.7),
        put(VERDICT, "judges judge length_correlation", 0.4),
    ),
    "judge-follows-place": (
        SUSPICIOUS,
        put(VERDICT, "judges judge order", {"first_slot": 0.62, "first_slot_interval": [0.55, 0.69]}),
        both(
            put(VERDICT, "judges judge order", {"first_slot": 0.62, "first_slot_interval": [0.49, 0.7]}),
            put(VERDICT, "judges reward order", {"first_slot": 0.59, "first_slot_interval": [0.55, 0.63]}),
        ),
    ),
    "verdicts-unparsable": (
        SUSPICIOUS,
        put(VERDICT, "judges judge order", {"unparsable_share": 0.021}),
        put(VERDICT, "judges judge order", {"unparsable_share": 0.02}),
    ),
    "judge-cannot-tell": (
        SICK,
        put(VERDICT, "judges judge accuracy lower_99", 0.5),
        put(VERDICT, "judges judge accuracy lower_99", 0.51),
    ),
    "judge-against-people": (
        SICK,
        put(VERDICT, "against_people", {"judge": {"accuracy": 0.4, "intervals": {"accuracy": [0.31, 0.49]}}}),
        put(VERDICT, "against_people", {"judge": {"accuracy": 0.4, "intervals": {"accuracy": [0.29, 0.51]}}}),
    ),
    "length-changed": (
        SUSPICIOUS,
        put(VERDICT, "length", lengths(35.0, 5.0)),
        put(VERDICT, "length", lengths(35.0, 10.0)),
    ),
    "answers-identical": (SUSPICIOUS, put(VERDICT, "identical", 120), put(VERDICT, "identical", 80)),
    "ends-less-often": (SUSPICIOUS, put(VERDICT, "ended a", 0.85), put(VERDICT, "ended a", 0.93)),
}


def test_a_healthy_run_has_no_finding(tmp_path):
    assert found(written(tmp_path)) == []
    assert run_history.read(tmp_path).missing == ()


@pytest.mark.parametrize("name", CASES)
def test_a_sick_run_has_this_finding_alone(tmp_path, name):
    severity, sick, _ = CASES[name]
    findings = found(written(tmp_path, sick))
    assert [(one.name, one.severity) for one in findings] == [(name, severity)]
    assert findings[0].evidence
    assert all((tmp_path / evidence.file).exists() for evidence in findings[0].evidence)


@pytest.mark.parametrize("name", CASES)
def test_a_run_just_inside_the_bound_is_healthy(tmp_path, name):
    assert found(written(tmp_path, CASES[name][2])) == []


def test_every_rule_has_a_case_and_a_line_in_the_docs():
    names = [rule.__name__.replace("_", "-") for rule in examination.RULES]
    assert len(names) == len(set(names)) >= 20
    assert set(names) == set(CASES)
    page = (ROOT / "docs" / "doctor.md").read_text()
    listed = re.findall(r"^\| [^|]+ \| `([\w-]+)` \(([a-z ]+)\) \| [^|]+ \|$", page, re.M)
    assert [name for name, _ in listed] == names
    assert all(CASES[name][0] in severity.split(" or ") for name, severity in listed)


def test_every_rule_in_a_module_is_looked_at():
    modules = (data_rules, curve_rules, reward_rules, policy_rules, dpo_rules, answer_rules)
    modules += (comparison_rules,)
    for module in modules:
        own = [one for _, one in inspect.getmembers(module, inspect.isfunction) if one.__module__ == module.__name__]
        assert {one for one in own if not one.__name__.startswith("_")} == set(module.RULES)


def test_the_figures_that_rules_read_are_metrics():
    page = (ROOT / "docs" / "metrics.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "preferent" / "doctor").glob("*.py"))
    figures = set(
        re.findall(r'"((?:objective|policy|val|validation|tokens)/(?!stage|roll|score|metr)[\w/]+)"', sources)
    )
    assert len(figures) > 10
    assert all(f"`{figure}`" in page for figure in figures), figures


@pytest.mark.parametrize(
    ("sick", "name", "severity"),
    [
        (drawn("policy", "tokens/ended", lambda step: 0.55), "answers-do-not-end", SUSPICIOUS),
        (put(QUALITY, "test accuracy", 0.55), "no-better-than-trivial", SUSPICIOUS),
        (put(JUDGE, "inputs train", "reward"), "judge-not-independent", SUSPICIOUS),
        (gain(0.01), "extreme-gain", SUSPICIOUS),
        (lambda files: files[VERDICT]["judges"]["judge"].pop("accuracy"), "judge-cannot-tell", SUSPICIOUS),
        (put(VERDICT, "judges judge accuracy rules words share", 0.7), "judge-cannot-tell", SICK),
        (put(VERDICT, "length", lengths(10.0)), "length-changed", SUSPICIOUS),
        (put("reward/model/tokenizer.json", "model", {"type": "Unigram"}), "tokenizers-differ", SUSPICIOUS),
        (drawn("policy", "objective/kl", lambda step: 0.05 * (step - 1) - 0.01), "negative-kl", SICK),
        (drawn("policy", "objective/kl_k1", noisy(0.15)), "kl-estimates-disagree", SICK),
    ],
)
def test_other_ways_to_be_sick(tmp_path, sick, name, severity):
    assert [(one.name, one.severity) for one in found(written(tmp_path, sick))] == [(name, severity)]


@pytest.mark.parametrize(
    "change",
    [
        drawn("policy", "objective/kl_k1", noisy(0.25)),
        first_rollouts(7),
        drawn("policy", "tokens/length", lambda step: 20.0 + 0.5 * step + 9 * (step % 3)),
        gain(0.15),
        put(VERDICT, "length", lengths(35.0, None)),
    ],
)
def test_other_ways_to_be_healthy(tmp_path, change):
    assert found(written(tmp_path, change)) == []


@pytest.mark.parametrize("name", [name for name in healthy() if "tokenizer_config" not in name])
def test_any_file_may_be_missing(tmp_path, name):
    assert found(written(tmp_path, lambda files: files.pop(name))) == []
    looked_at = not name.startswith(("data/prompt", "policy/model", "reward/model"))
    assert run_history.read(tmp_path).missing == ((name,) if looked_at else ())


def test_rules_about_rewards_and_prompts_leave_a_directly_tuned_policy_alone(tmp_path):
    few = both(direct, put(COUNTS, "parts prompt train", 5), put(COUNTS, "parts prompt validation", 5))
    assert found(written(tmp_path, few)) == []
    assert not any(name.startswith(("reward/", "policy/")) for name in run_history.read(tmp_path).missing)
    (finding,) = found(written(tmp_path / "few", both(direct, put(POLICY, "facts counts train pairs", 1900))))
    assert finding.name == "few-pairs" and finding.evidence[0].file == "policy/stage.json"


def test_an_exploded_kl_is_said_per_token(tmp_path):
    (finding,) = found(written(tmp_path, CASES["kl-explodes"][1]))
    kl, length = (evidence.value for evidence in finding.evidence)
    assert finding.says.startswith(f"The policy is {kl / length:.1f} nats per token away")


def test_not_ending_tempts_where_it_scores_more_than_a_quarter_of_the_answers_that_end(tmp_path):
    (finding,) = found(written(tmp_path, scored(lambda i: 0.1 * i - 2.45)))
    assert (finding.name, finding.severity) == ("not-ending-pays", SUSPICIOUS)
    assert "than many of those that end" in finding.says
    assert "ended answers that score less, share 0.2667" in str(finding.evidence[1])


def test_figures_come_with_file_and_step(tmp_path):
    (finding,) = found(written(tmp_path, CASES["negative-kl"][1]))
    assert str(finding.evidence[0]) == "policy/metrics.jsonl, step 20: validation/kl -0.2"
    (finding,) = found(written(tmp_path / "entropy", CASES["entropy-collapse"][1]))
    assert [str(one) for one in finding.evidence] == [
        "policy/metrics.jsonl, steps 1 to 4: mean objective/entropy 2",
        "policy/metrics.jsonl, steps 31 to 40: mean objective/entropy 0.2",
    ]


def ask(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of `preferent doctor`."""
    monkeypatch.setattr(sys, "argv", ["preferent", "doctor", *words])
    try:
        main.main()
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


def test_exit_codes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    changes = {"healthy": None, "suspicious": CASES["no-leash"][1], "sick": CASES["never-better"][1]}
    roots = {name: str(written(tmp_path / name, change)) for name, change in changes.items()}
    assert ask(monkeypatch, roots["healthy"]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert ask(monkeypatch, roots["suspicious"]) == 0
    assert "suspicious: no-leash" in capsys.readouterr().out
    assert ask(monkeypatch, roots["sick"]) == DataError.exit_code == 4
    shown = capsys.readouterr()
    assert "sick: never-better" in shown.out
    assert "1 of 1 findings" in shown.err
    assert ask(monkeypatch, str(tmp_path / "nowhere")) == UsageError.exit_code == 2
    (tmp_path / "empty").mkdir()
    assert ask(monkeypatch, str(tmp_path / "empty")) == 2


def test_json_is_the_findings_and_nothing_else(tmp_path, monkeypatch, capsys):
    sick = both(CASES["no-leash"][1], CASES["never-better"][1])
    assert ask(monkeypatch, str(written(tmp_path, sick)), "--json") == 4
    listed = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in listed] == ["never-better", "no-leash"]
    assert listed[0]["evidence"][0] == {"file": "policy/stage.json", "figure": "best_step", "value": 0, "steps": None}


def test_every_member_of_an_ensemble_is_looked_at(tmp_path):
    def weak_member(files: Files) -> None:
        for name in ("stage.json", "metrics.jsonl", "quality.json"):
            files[f"reward-2/{name}"] = copy.deepcopy(files[f"reward/{name}"])
        files["reward-2/quality.json"]["test"]["accuracy"] = 0.5

    (finding,) = found(written(tmp_path, weak_member))
    assert finding.name == "no-better-than-trivial" and finding.evidence[0].file == "reward-2/quality.json"


def test_the_shorter_answer_is_shown_where_it_does_as_well(tmp_path):
    (finding,) = found(
        written(tmp_path, both(put(QUALITY, "test longer_accuracy", 0), put(QUALITY, "test accuracy", 1)))
    )
    assert [one.value for one in finding.evidence[:3]] == [1, 0, 1]


def test_a_damaged_file_is_named(tmp_path):
    (written(tmp_path) / "reward" / "quality.json").write_text('{"test":\n')
    with pytest.raises(DataError, match=r"quality\.json:2: not JSON"):
        run_history.read(tmp_path)


def test_a_run_in_progress_says_what_is_not_there(tmp_path):
    root = written(tmp_path, lambda files: files.pop("judge/quality.json"))
    with open(root / "policy" / "rollouts" / "samples.jsonl", "a") as file:
        file.write('{"step": 41, "answ')
    history = run_history.read(root)
    assert examination.examine(history) == []
    assert "Missing, and therefore not checked: judge/quality.json" in examination.render(root, history, [])
