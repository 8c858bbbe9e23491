"""What a network says of an answer does not depend on padding, company, cache or cutting; and is read at its place."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quiet_recipe

from preferent.data.types import Rollout
from preferent.models import batching, language_models
from preferent.models.world import World
from preferent.rewards.scoring import RewardModel
from preferent.rollouts import measurement
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler
from preferent.training import sequences

ANSWER_TOKENS = 12
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def policy(ending: Path) -> language_models.Policy:
    return language_models.load_policy(ending, World.of(quiet_recipe()))


@pytest.fixture(scope="module")
def scorer(ending: Path) -> language_models.Scorer:
    return language_models.load_scorer(ending, World.of(quiet_recipe()), seed=1)


@pytest.fixture(scope="module")
def rollouts(policy: language_models.Policy) -> list[Rollout]:
    """Answers of many lengths to prompts of many lengths; some fill the window, and some end in EOS."""
    asked = [np.array([1, *range(270, 272 + 5 * i % 13)], np.int32) for i in range(60)]
    found = LocalSampler(policy, 0).sample(asked, range(60), "rollout", 0, Params(ANSWER_TOKENS, temperature=0.7))
    assert {r.ended for r in found} == {True, False} and any(len(r.ids) < 6 for r in found)
    return found


def cuts(rollouts: Sequence[Rollout], pad_id: int, max_tokens: int) -> list[measurement.MicroBatch]:
    return measurement.micro_batches(rollouts, max_tokens, pad_id, torch.device("cpu"))


def test_the_cache_the_full_pass_and_any_company_agree(policy: language_models.Policy, rollouts: list[Rollout]) -> None:
    shape = len(rollouts), ANSWER_TOKENS
    reference = policy.reference()
    found = [
        measurement.measure(policy, reference, cuts(rollouts, policy.tokenizer.pad_id, tokens), shape, 0.7)
        for tokens in (1, 90, 100_000)
    ]
    for row, rollout in enumerate(rollouts):
        for one in found:
            assert np.allclose(one.log_probs[row, : len(rollout.ids)], rollout.sampler_log_probs, atol=TOLERANCE)
    for name in ("log_probs", "entropy"):
        for other in found[1:]:
            assert torch.allclose(getattr(found[0], name), getattr(other, name), atol=TOLERANCE), name
    assert all(one.kl.abs().max() <= TOLERANCE for one in found)


def test_a_value_is_that_of_the_tokens_before_it_alone(scorer: language_models.Scorer, rollouts: list[Rollout]) -> None:
    """At slot t stands the score of the state after prompt and t answer tokens, in any company; beyond, nothing."""
    shape = len(rollouts), ANSWER_TOKENS
    together = measurement.values_of(scorer, cuts(rollouts, scorer.tokenizer.pad_id, 300), shape)
    for row, rollout in enumerate(rollouts[:8]):
        for t in range(len(rollout.ids)):
            before = np.concatenate([rollout.prompt_ids, rollout.ids[:t]])
            alone = measurement.last_scores(scorer, [before], 100)
            assert together[row, t].item() == pytest.approx(alone[0], abs=TOLERANCE)
        assert (together[row, len(rollout.ids) :] == 0).all()


def test_a_score_is_read_at_the_last_token_whether_it_is_padded_or_fills_the_row(
    scorer: language_models.Scorer, rollouts: list[Rollout]
) -> None:
    pad_id = scorer.tokenizer.pad_id
    sequences = [np.concatenate([r.prompt_ids, r.ids]) for r in rollouts]
    sequences += [np.array([1, 270, pad_id, 271, 2], np.int32)]
    whole = measurement.last_scores(scorer, sequences, 100_000)
    for row, sequence in enumerate(sequences):
        with torch.no_grad():
            states = scorer.hidden(torch.from_numpy(sequence.astype(np.int64))[None])
            assert whole[row] == pytest.approx(scorer.scores(states[0, -1]).item(), abs=TOLERANCE)
    assert np.allclose(measurement.last_scores(scorer, sequences, 1), whole, atol=TOLERANCE)
    longest = max(range(len(sequences)), key=lambda i: len(sequences[i]))
    assert len(sequences[longest]) == batching.pad(sequences, pad_id).shape[1], "one row has no padding"


def test_the_reward_is_of_the_whole_answer_with_its_end_token(
    scorer: language_models.Scorer, rollouts: list[Rollout]
) -> None:
    reward = RewardModel.of(scorer, quiet_recipe())
    whole = reward.score_ids([r.prompt_ids for r in rollouts], [r.ids for r in rollouts])
    states = [np.concatenate([r.prompt_ids, r.ids]) for r in rollouts]
    assert np.allclose(whole, measurement.last_scores(scorer, states, 400), atol=TOLERANCE)
    ended = [i for i, r in enumerate(rollouts) if r.ended]
    cut = reward.score_ids([rollouts[i].prompt_ids for i in ended], [rollouts[i].ids[:-1] for i in ended])
    assert np.abs(whole[ended] - cut).min() > 100 * TOLERANCE, "the end token is part of what is scored"


def test_left_padding_with_positions_is_as_right_padding_without(
    scorer: language_models.Scorer, rollouts: list[Rollout]
) -> None:
    rows = [np.concatenate([r.prompt_ids, r.ids]).astype(np.int64) for r in rollouts]
    left = torch.from_numpy(batching.pad(rows, scorer.tokenizer.pad_id, left=True))
    mask = torch.from_numpy(batching.pad([np.ones_like(row) for row in rows], 0, left=True))
    with torch.no_grad():
        hidden = scorer.hidden(left, mask, (mask.cumsum(-1) - 1).clamp_min(0))
        found = scorer.scores(hidden[:, -1]).numpy()
    assert np.allclose(found, measurement.last_scores(scorer, rows, 400), atol=TOLERANCE)


def test_packed_text_loses_nothing_but_the_tail_and_its_loss_is_a_sum_of_rows(policy: language_models.Policy) -> None:
    texts = [list(range(270, 270 + n)) for n in (3, 9, 1, 14, 6, 20)]
    packed = batching.pack(texts, policy.tokenizer.eos_id, 8)
    flat = [id for text in texts for id in (*text, policy.tokenizer.eos_id)]
    assert packed.reshape(-1).tolist() == flat[: len(flat) // 8 * 8] and len(flat) - packed.size < 8
    rows = [row.astype(np.int32) for row in packed]
    assert sequences.target_count(policy, sequences.Sequences(rows, [0] * len(rows))) == packed.shape[0] * 7
    with torch.no_grad():
        together = sequences.loss_sum(policy, sequences.Sequences(rows, [0] * len(rows)))
        apart = sum(sequences.loss_sum(policy, sequences.Sequences([row], [0])) for row in rows)
    assert together.item() == pytest.approx(float(apart), abs=1e-3)


def test_demonstrations_cost_what_their_answers_do_in_any_company(policy: language_models.Policy) -> None:
    rows = [np.array([1, *range(270, 270 + n), 2], np.int32) for n in (3, 9, 5, 14)]
    starts = [2, 6, 3, 4]
    with torch.no_grad():
        together = sequences.loss_sum(policy, sequences.Sequences(rows, starts))
        apart = [
            sequences.loss_sum(policy, sequences.Sequences([row], [s])) for row, s in zip(rows, starts, strict=True)
        ]
        for row, start, loss in zip(rows, starts, apart, strict=True):
            logits = policy.logits(policy.hidden(torch.from_numpy(row.astype(np.int64))[None])[0])
            places = torch.from_numpy(row[start:].astype(np.int64))[:, None]
            expected = -logits.double().log_softmax(-1)[start - 1 : -1].gather(-1, places).sum()
            assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    assert together.item() == pytest.approx(sum(loss.item() for loss in apart), abs=1e-4)


def test_no_dropout_reaches_a_network_that_runs_in_training_mode(tiny: Path, tmp_path: Path) -> None:
    """Checkpointing needs training mode; with LoRA it is the reference's too. A config that asks for dropout is not
    heard, so that two passes agree to the last bit."""
    folder = tmp_path / "dropping"
    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    text = (folder / "config.json").read_text()
    assert '"attention_dropout": 0.0' in text
    (folder / "config.json").write_text(text.replace('"attention_dropout": 0.0', '"attention_dropout": 0.5'))
    world, ids = World.of(quiet_recipe()), torch.tensor([[1, 270, 280, 290]])
    plain = language_models.load_policy(tiny, world)
    tuned = language_models.load_policy(folder, world, lora_dim=2, checkpointing=True)
    for reference in (tuned.reference(), language_models.load_policy(folder, world).reference()):
        with torch.no_grad():
            assert torch.equal(reference.hidden(ids), reference.hidden(ids))
            assert torch.equal(reference.hidden(ids), plain.hidden(ids))
