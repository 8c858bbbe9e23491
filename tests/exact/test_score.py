"""The reward by worked numbers: normaliser, ensembles, averaged weights, sums, clip, length, missing ends."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_recipe

from preferent import files
from preferent.config import model_reference, recipe
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Message, Prompt, Rollout
from preferent.errors import PlatformError, UsageError
from preferent.models import language_models, saving, weight_averaging
from preferent.models.language_models import Scorer
from preferent.models.world import World
from preferent.rewards import normalization, scoring
from preferent.rewards.normalization import Normalizer, ScoreNormalization, Term
from preferent.rewards.scoring import CombinedReward, RewardModel, RolloutBatch, UserFunction
from preferent.rollouts import measurement
from preferent.rollouts.local_sampler import LocalSampler
from preferent.rollouts.sampler import Prompts, rollout_params
from preferent.rollouts.store import RolloutStore

RAW = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, -1.0]])
"""Three members' scores of two answers: means 3 and 1, biased variances 8/3 and 2."""


def rollouts(raw: list[float], lengths: list[int], ended: list[bool]) -> list[Rollout]:
    return [
        Rollout(0, 0, 0, np.array([1]), np.arange(n), np.zeros(n, np.float32), whole, {"reward": value})
        for value, n, whole in zip(raw, lengths, ended, strict=True)
    ]


def one(bias: float = 0.0, gain: float = 1.0) -> ScoreNormalization:
    return ScoreNormalization((Term("reward", 1.0, {"reward": Normalizer(bias, gain)}),))


@pytest.mark.parametrize("kind", ["bias", "std", "none"])
def test_normalisation_leaves_every_difference_but_for_the_gain(kind: str) -> None:
    raw = np.array([0.5, -1.25, 3.0, 7.5, 2.0])
    found = Normalizer.fit(raw, kind)
    scores = found(raw)
    assert np.allclose(scores[:, None] - scores, found.gain * (raw[:, None] - raw), atol=1e-12)
    mean, deviation = 2.35, math.sqrt(np.mean((raw - 2.35) ** 2))
    expected = {"bias": raw - mean, "std": (raw - mean) / deviation, "none": raw}[kind]
    assert np.allclose(scores, expected, atol=1e-12)


def test_a_preference_probability_is_unchanged_by_a_bias() -> None:
    raw = np.array([0.5, -1.25, 3.0])
    scores = Normalizer.fit(raw, "bias")(raw)
    before, after = (1 / (1 + np.exp(-(x[:, None] - x))) for x in (raw, scores))
    assert np.allclose(before, after, atol=1e-15)


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [3.0, 1.0]), ("worst", [1.0, -1.0]), ("variance", [3 - 0.1 * 8 / 3, 1 - 0.1 * 2])]
)
def test_an_ensemble_by_hand(how: normalization.Combine, expected: list[float]) -> None:
    assert normalization.combined(RAW, how, 0.1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("how", ["mean", "worst", "variance", "weights"])
def test_equal_members_are_as_one(how: normalization.Combine) -> None:
    same = np.repeat(RAW[:1], 4, axis=0)
    assert normalization.combined(same, how, 0.7) == pytest.approx(RAW[0], abs=1e-12)


@pytest.mark.parametrize("how", ["mean", "worst", "variance"])
def test_each_member_is_normalised_on_its_own(how: str) -> None:
    """Members that differ by an offset, and under `std` by a factor, are equal once normalised."""
    raw = np.array([0.5, -1.0, 2.0, 4.5])
    asked = quiet_recipe(reward={"combine": how, "members": 2, "normalize": "std"})
    members = {"reward": raw, "reward-2": 3 * raw - 100}
    found = ScoreNormalization.of(asked, 2).fit(members, "std")
    assert found(members) == pytest.approx((raw - raw.mean()) / raw.std(), abs=1e-12)


def test_a_sum_by_hand_and_as_a_file(tmp_path: Path) -> None:
    parts = [{"source": "reward", "weight": 2.0}, {"source": "m:short", "weight": -0.5}]
    asked = quiet_recipe(reward={"sources": parts, "members": 2, "combine": "worst"})
    raw = {"reward": np.array([1.0, 3.0]), "reward-2": np.array([2.0, 0.0]), "short": np.array([10.0, 20.0])}
    found = ScoreNormalization.of(asked, 2).fit(raw, "bias")
    # members: (-1, 1) and (1, -1), the worst is -1 for both; short: (-5, 5)
    assert found(raw).tolist() == [2 * -1 - 0.5 * -5, 2 * -1 - 0.5 * 5]
    assert found.unfitted()(raw).tolist() == [2 * 1 - 0.5 * 10, 2 * 0 - 0.5 * 20]
    found.write(tmp_path / "score.json")
    assert ScoreNormalization.read(tmp_path / "score.json") == found
    assert found.formula() == "2 · worst(reward − 2, reward-2 − 1) + -0.5 · (short − 15)"
    assert found.normalizer("short") == Normalizer(15.0, -0.5)


def test_what_is_logged_of_a_sum_is_raw_in_all_and_normalised_by_source() -> None:
    """`objective/scores_raw` is the weighted sum before normalisation, `objective/scores/NAME` without the weight."""
    parts = [{"source": "m:long", "weight": 2.0}, {"source": "m:short", "weight": -0.5}]
    asked = quiet_recipe(reward={"sources": parts})
    rows = [
        dataclasses.replace(row, scores={"long": value, "short": 10.0 * value})
        for row, value in zip(rollouts([0.0, 0.0], [1, 2], [True, True]), (1.0, 4.0), strict=True)
    ]
    fitted = ScoreNormalization.of(asked, 0).fit({"long": np.array([1.0]), "short": np.array([5.0])}, "bias")
    found = scoring.metrics(rows, fitted)
    assert found == pytest.approx(
        {"objective/scores_raw": 2 * 2.5 - 0.5 * 25, "objective/scores/long": 1.5, "objective/scores/short": 20.0}
    )
    assert scoring.metrics(rollouts([2.0, 4.0], [1, 2], [True, True]), one(bias=1.0)) == {"objective/scores_raw": 3.0}


def test_overlong_by_hand() -> None:
    assert normalization.overlong(np.array([1, 6, 7, 8, 9, 10]), 10, 4).tolist() == [0, 0, 0.25, 0.5, 0.75, 1]


def test_the_order_is_clip_then_length_then_missing_eos() -> None:
    rows = rollouts([9.0, 9.0, -9.0, 9.0], [6, 12, 10, 12], [True, True, True, False])
    section = {"clip": 2.0, "overlong_tokens": 4, "overlong_penalty": 3.0, "missing_eos_score": -7.0}
    found = scoring.final_scores(rows, one(bias=1.0), quiet_recipe(reward=section))
    assert found.tolist() == [2.0, 2 - 3.0, -2 - 1.5, -7.0]
    off = scoring.final_scores(rows, one(bias=1.0), quiet_recipe(reward={"missing_eos_score": None}))
    assert off.tolist() == [8.0, 8.0, -10.0, 8.0] and off.dtype == np.float32


def saved(scorer: Scorer, folder: Path) -> Path:
    saving.save(scorer, folder, dict(scorer.trainable()), "# test\n")
    return folder


def nudged(scorer: Scorer, seed: int) -> Scorer:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in scorer.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return scorer


ASKED = quiet_recipe()
IDS = [np.array([1, *range(260, 260 + n)]) for n in (3, 5, 9)]


def scores(scorer: Scorer) -> np.ndarray:
    return measurement.last_scores(scorer, IDS, 1000)


def test_averaging_linear_heads_is_averaging_scores(tiny: Path, tmp_path: Path) -> None:
    world = World.of(ASKED)
    members = [language_models.load_scorer(tiny, world, 0, seed) for seed in (1, 2, 3)]
    folders = [saved(member, tmp_path / str(i)) for i, member in enumerate(members)]
    each = np.stack([scores(member) for member in members])
    assert np.ptp(each, axis=0).min() > 1e-3
    assert np.allclose(scores(weight_averaging.load(folders, world)), each.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("rank", [0, 2])
def test_equal_members_average_to_themselves(tiny: Path, tmp_path: Path, rank: int) -> None:
    world = World.of(ASKED)
    folder = saved(nudged(language_models.load_scorer(tiny, world, rank, 1), 5), tmp_path / "member")
    alone, mean = language_models.load_scorer(folder, world), weight_averaging.load([folder] * 3, world)
    if rank == 0:
        others = dict(alone.body.named_parameters())
        assert all(torch.equal(p, others[name]) for name, p in mean.body.named_parameters())
    assert np.allclose(scores(mean), scores(alone), atol=1e-6)


@pytest.mark.parametrize(
    ("rank", "changes"), [(2, {}), (3, {}), (2, {"lora_alpha": 7}), (4, {"use_rslora": True})], ids=str
)
def test_adapters_average_to_the_mean_of_their_merged_weights(
    tiny: Path, tmp_path: Path, rank: int, changes: dict[str, Any]
) -> None:
    world = World.of(ASKED)
    adapters, full = [], []
    for seed in (1, 2):
        scorer = nudged(language_models.load_scorer(tiny, world, rank if seed == 2 else 2, seed), seed)
        adapters.append(saved(scorer, tmp_path / f"adapter-{seed}"))
        if seed == 2:
            config = adapters[-1] / "adapter_config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        full.append(tmp_path / f"full-{seed}")
        saving.save_merged(language_models.load_scorer(adapters[-1], world), full[-1], {}, "# test\n")
    mean = weight_averaging.load(adapters, world)
    expected = scores(weight_averaging.load(full, world))
    assert np.abs(scores(language_models.load_scorer(full[0], world)) - expected).max() > 1e-2
    assert np.allclose(scores(mean), expected, atol=1e-5)
    critic = mean.critic()
    assert np.allclose(scores(critic), expected, atol=1e-5)
    with torch.no_grad():
        next(iter(critic.trainable().values())).add_(1.0)
    assert np.allclose(scores(mean), expected, atol=1e-5), "critic and reward model share weights"
    saving.save_merged(mean, tmp_path / "out", {}, "# test\n")
    assert np.allclose(scores(language_models.load_scorer(tmp_path / "out", world)), expected, atol=1e-5)


def test_only_models_that_started_from_one_are_averaged(tiny: Path, tmp_path: Path) -> None:
    world = World.of(ASKED)
    folders = [saved(language_models.load_scorer(tiny, world, rank, 1), tmp_path / str(rank)) for rank in (0, 2)]
    with pytest.raises(UsageError, match=r"reward\.combine: weights averages models that started from the same model"):
        weight_averaging.load(folders, world)
    other = saved(language_models.load_scorer(tiny, world, 2, 2), tmp_path / "pattern")
    config = other / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"alpha_pattern": {"q_proj": 3}}))
    with pytest.raises(UsageError, match=r"reward\.combine: weights averages adapters of the same layers"):
        weight_averaging.load([folders[1], other], world)


CONVERSATION = Prompt(messages=(Message("user", "Mary found"),), context="Be kind.")
THEIRS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
OURS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %} :{% endif %}"


def batch_of(rows: list[Rollout], prompts: list[Prompt], tokenizer: Tokenizer, asked: Any = ASKED) -> RolloutBatch:
    return RolloutBatch(rows, Prompts.of(prompts, tokenizer, asked), tokenizer)


def seen(reward: RewardModel, monkeypatch: pytest.MonkeyPatch, batch: RolloutBatch) -> list[list[int]]:
    """The sequences of token ids that a reward model is given."""
    found: list[np.ndarray] = []

    def last_scores(scorer: Scorer, sequences: list[np.ndarray], max_tokens: int) -> np.ndarray:
        found.extend(sequences)
        return np.zeros(len(sequences), np.float32)

    with monkeypatch.context() as patch:
        patch.setattr(measurement, "last_scores", last_scores)
        reward.score(batch)
    return [ids.tolist() for ids in found]


def answered(tokenizer: Tokenizer, prompt: Prompt, answer: str, ended: bool) -> Rollout:
    asked = np.array(tokenizer.encode_prompt(prompt, None, 64)[0])
    ids, _ = tokenizer.encode_answer(prompt, None, answer, 64)
    ids = ids if ended else ids[:-1]
    return Rollout(0, 0, 0, asked, np.array(ids), np.zeros(len(ids), np.float32), ended)


def test_another_model_reads_the_conversation_in_its_own_template(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = make_model(seed=1), make_model(seed=2, vocab_size=330)
    (ours / "chat_template.jinja").write_text(OURS)
    (theirs / "chat_template.jinja").write_text(THEIRS)
    reward = RewardModel.of(
        language_models.load_scorer(theirs, World.of(ASKED), seed=1), quiet_recipe(prompt_sequence_length=90)
    )
    policy, other = Tokenizer.load(ours), reward.scorer.tokenizer
    rows = [answered(policy, CONVERSATION, " a key.", ended) for ended in (True, False)]
    found = seen(reward, monkeypatch, batch_of(rows, [CONVERSATION] * 2, policy))
    assert other.text(CONVERSATION, None) == "<system>Be kind.<user>Mary found<reply>"
    asked = other.encode_prompt(CONVERSATION, None, 90)[0]
    answer = other.encode_answer(CONVERSATION, None, " a key.", 12)[0]
    assert answer[-1] == other.eos_id, "it closes a complete answer"
    assert found == [asked + answer, asked + answer[:-1]]
    shown = [policy.text(CONVERSATION, None)]
    expected = reward.score_ids([np.array(asked)], [np.array(answer)])
    assert reward.score_texts(shown, [" a key."], [CONVERSATION]) == pytest.approx(expected)
    assert reward.score_texts(shown, [" a key."]) != pytest.approx(expected), "the policy's template reads otherwise"


def test_the_score_is_read_at_the_end_token_of_the_very_ids(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = RewardModel.of(language_models.load_scorer(tiny, World.of(ASKED), seed=1), ASKED)
    tokenizer, prompts = reward.scorer.tokenizer, [Prompt("Mary found"), Prompt("He")]
    rows = [answered(tokenizer, prompt, " a key.", True) for prompt in prompts]
    batch = batch_of(rows, prompts, tokenizer)
    sequences = seen(reward, monkeypatch, batch)
    assert [ids[-1] for ids in sequences] == [tokenizer.eos_id] * 2
    assert sequences == [[*row.prompt_ids.tolist(), *row.ids.tolist()] for row in rows]
    with torch.no_grad():
        for value, ids in zip(reward.score(batch), sequences, strict=True):
            alone = reward.scorer.body(input_ids=torch.tensor([ids])).logits[0, 0]
            assert value == pytest.approx(float(alone), abs=1e-5)


def test_raw_scores_go_by_the_names_of_the_sources(tiny: Path) -> None:
    parts = [{"source": "m:length", "weight": 2.0}, {"source": "reward", "name": "kind"}]
    asked = quiet_recipe(reward={"sources": parts}, instruction="Go on.")
    heard: list[str] = []

    def length(prompts: list[str], answers: list[str]) -> list[float]:
        heard.extend(prompts)
        return [float(len(answer)) for answer in answers]

    kind = RewardModel.of(language_models.load_scorer(tiny, World.of(asked), seed=1), asked)
    sources = {"length": UserFunction("m:length", length), "kind": kind}
    reward, tokenizer = CombinedReward(sources, ScoreNormalization.of(asked, 1)), kind.scorer.tokenizer
    prompt = Prompt("Mary found")
    found = scoring.score_rollouts(
        reward, batch_of([answered(tokenizer, prompt, " a key.", True)], [prompt], tokenizer, asked)
    )
    assert heard == ["Go on.\n\n\nMary found"] and found[0].scores["length"] == 7
    expected = 2 * 7 + found[0].scores["kind"]
    assert scoring.final_scores(found, reward.scale, asked).tolist() == pytest.approx([expected])
    means = scoring.metrics(found, reward.scale)
    assert means["objective/scores_raw"] == pytest.approx(expected)
    assert (means["objective/scores/length"], means["objective/scores/kind"]) == (7, found[0].scores["kind"])
    assert reward.critic_name(tokenizer) == "kind"
    assert dataclasses.replace(reward, sources={"length": sources["length"]}).critic_name(tokenizer) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": {"sources": [{"source": "reward"}, {}]}}, "'reward.sources.1.source' is missing"),
        (
            {"reward": {"sources": [{"source": "r", "wieght": 1}]}},
            r"'reward\.sources\.0\.wieght'; did you mean 'reward\.sources\.0\.weight'",
        ),
        ({"reward": {"sources": [{"source": "a:f"}, {"source": "b:f"}]}}, "both called f"),
        ({"reward": {"sources": [{"source": "reward"}, {"source": "reward", "name": "x"}]}}, "named twice"),
        ({"reward": {"sources": []}}, "at least 1 item"),
        ({"reward": {"combine": "worst", "normalize": "none"}}, "each of which must be normalised"),
        ({"reward": {"overlong_tokens": 65}}, "larger than target_sequence_length"),
    ],
)
def test_a_reward_that_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe.parse({"large_model_reference": "x"} | values)


def test_errors_name_the_place_in_the_recipe(tiny: Path) -> None:
    parts = [{"source": "m:f"}, {"source": "nowhere at all"}]
    asked = quiet_recipe(large_model_reference=str(tiny), reward={"sources": parts})
    with pytest.raises(PlatformError, match=r"^reward\.sources\.1\.source: nowhere at all: no such folder"):
        model_reference.check(asked)
    asked = quiet_recipe(reward={"sources": [{"source": str(tiny), "name": "rm"}]})
    with pytest.raises(UsageError, match=r"^reward\.sources\.0\.source: .* is not a reward model"):
        CombinedReward.load(asked, {"reward.rm": tiny}, World.of(asked))
    with pytest.raises(UsageError, match=r"^reward\.sources\.0\.source: give its folder: --in reward\.rm="):
        CombinedReward.load(asked, {}, World.of(asked))
    asked = quiet_recipe(reward={"sources": [{"source": "no_such_module:f"}]})
    with pytest.raises(UsageError, match=r"^reward\.sources\.0\.source: no_such_module:f cannot be imported"):
        CombinedReward.load(asked, {}, World.of(asked))


def test_what_is_no_reward_model_is_told(tiny: Path, tmp_path: Path) -> None:
    folder = saved(language_models.load_scorer(tiny, World.of(ASKED), 0, 1), tmp_path / "member")
    config = files.read_json(folder / "config.json")
    names = {str(i): f"LABEL_{i}" for i in range(2)}
    files.write_json(
        folder / "config.json", config | {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}}
    )
    with pytest.raises(UsageError, match="returns 2 numbers, but a reward model returns one"):
        language_models.load_scorer(folder, World.of(ASKED))


def test_the_scale_is_fitted_once_and_read_back(tiny: Path, tmp_path: Path) -> None:
    asked = quiet_recipe(reward={"sources": "m:length", "normalize_prompts": 3, "normalize": "std"})
    policy = language_models.load_policy(tiny, World.of(asked))
    seen: list[int] = []

    def length(prompts: list[str], answers: list[str]) -> list[float]:
        seen.append(len(answers))
        return [float(number) for number in range(len(answers))]

    reward = CombinedReward({"reward": UserFunction("m:length", length)}, ScoreNormalization.of(asked, 0))
    prompts = Prompts.of([Prompt(word) for word in ("Mary", "A dog", "He wrote", "In the")], policy.tokenizer, asked)
    for _ in range(2):
        found = scoring.fit_scale(asked, policy, reward, LocalSampler(policy, 0), prompts, tmp_path)
        assert seen == [3]
        assert found.scale({"reward": np.array([1.0, 2.0])}) == pytest.approx([0, math.sqrt(1.5)])


def test_averaged_weights_are_of_what_the_run_trains_alone(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_length.py").write_text("def length(prompts, answers):\n    return [len(a) for a in answers]\n")
    monkeypatch.chdir(tmp_path)
    parts = [{"source": "reward"}, {"source": "of_length:length"}]
    asked = quiet_recipe(reward={"sources": parts, "members": 2, "combine": "weights"})
    members = [
        saved(language_models.load_scorer(tiny, World.of(asked), 0, seed), tmp_path / str(seed)) for seed in (1, 2)
    ]
    reward = CombinedReward.load(asked, dict(zip(("reward", "reward-2"), members, strict=True)), World.of(asked))
    assert {name: type(source) for name, source in reward.sources.items()} == {
        "reward": RewardModel,
        "length": UserFunction,
    }
    averaged = weight_averaging.load(members, World.of(asked))
    assert np.allclose(scores(reward.sources["reward"].scorer), scores(averaged), atol=1e-7)


def test_only_what_the_recipe_names_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = quiet_recipe(reward={"sources": [{"source": "reward"}, {"source": "hub/Other-RM"}]})
    monkeypatch.setattr(model_reference, "resolve", lambda name: Path("/downloaded") / name)
    given = {"reward": Path("r"), "reward.Other_RM": Path("hub/Other-RM")}
    assert scoring.resolve_models(asked, given) == {
        "reward": Path("r"),
        "reward.Other_RM": Path("/downloaded/hub/Other-RM"),
    }
    assert scoring.resolve_models(asked, {"reward": Path("r")}) == {"reward": Path("r")}


def test_validation_charges_the_kl_it_measures(tiny: Path, tmp_path: Path) -> None:
    asked = quiet_recipe(kl_coeff=0.5, reward={"sources": "m:length", "missing_eos_score": None})
    policy, reference = (language_models.load_policy(tiny, World.of(asked), lora_dim=0) for _ in range(2))
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(1.3)
    reward = CombinedReward({"reward": UserFunction("m:length", lambda prompts, answers: [2.0] * len(answers))}, one())
    prompts = Prompts.of([Prompt(word) for word in ("Mary", "A dog", "He wrote")], policy.tokenizer, asked)
    found = scoring.validate(
        asked, reward, policy, reference, LocalSampler(policy, 0), prompts, 7, RolloutStore(tmp_path), 1000
    )
    rollouts = LocalSampler(policy, 0).sample(prompts.ids, range(3), "eval", 7, rollout_params(asked))
    assert (tmp_path / "validation-000007.safetensors").exists()
    assert found["validation/kl"] > 0.01 and found["validation/score"] == 2.0
    assert found["validation/objective"] == pytest.approx(2 - 0.5 * found["validation/kl"])
    assert found["validation/length"] == np.mean([len(r.ids) for r in rollouts])
    assert found["validation/ended"] == np.mean([r.ended for r in rollouts])
