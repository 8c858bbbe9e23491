"""The cases of lesson 6: thirteen runs, twelve of them sabotaged. Do not read on before you have diagnosed them."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.numpy
import torch
from lesson import Wrong, exercise

from preferent import files
from preferent.rollouts import local_sampler
from preferent.training import losses, ppo

Rows = list[dict[str, Any]]
Labels = Mapping[str, Any]

NAMES = {
    "healthy": "nothing is wrong",
    "kl sign": "the reward pays for distance from the reference instead of charging for it",
    "temperature": "answers are sampled at another temperature than the one that is trained",
    "no end": "the sampler can no longer draw the end token",
    "ending does not pay": "an answer that is cut scores higher than one that ends",
    "swapped labels": "the reward model learned from preferences whose choice was swapped",
    "length": "the reward model learned from an annotator who takes the longer answer",
    "rate too high": "the learning rate of the policy is thirty times too high",
    "rate too low": "the learning rate of the policy is a thousand times too low",
    "judge is reward": "the reward that was optimised is the judge",
    "log-probs shifted": "old log-probabilities belong to the token beside",
    "critic": "the learning rate of the critic is far too high",
    "head lost": "the head of the reward model was lost when it was saved: its weights are zero",
}
"""The diagnoses to choose from."""

RATE = 5e-4
"""The learning rate of the policy where nothing is wrong."""

LETTERS = dict(
    zip(
        "ABCDEFGHIJKLM",
        (
            "rate too low", "no end", "swapped labels", "log-probs shifted", "kl sign", "judge is reward", "length",
            "head lost", "healthy", "rate too high", "critic", "temperature", "ending does not pay",
        ),
        strict=True,
    )
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What a sabotage changes: sections of the recipe, the reward model, and functions of preferent."""

    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reward: str = "reward"
    broken: contextlib.AbstractContextManager[Any] = field(default_factory=contextlib.nullcontext)


def case(letter: str) -> Case:
    """Return the sabotage of a case."""
    name = LETTERS[letter]
    if name == "kl sign":
        return Case(broken=_instead(losses, "shaped_rewards", _pays_for_distance))
    if name == "temperature":
        return Case(broken=_instead(ppo, "rollout_params", _cold))
    if name == "no end":
        return Case(broken=_instead(local_sampler, "choose", _never_ends))
    if name == "log-probs shifted":
        return Case(broken=_instead(losses, "policy_loss", _beside))
    sections: dict[str, Mapping[str, Any]] = {
        "rate too high": {"ppo": {"learning_rate": 30 * RATE}},
        "rate too low": {"ppo": {"learning_rate": RATE / 1000}},
        "critic": {"ppo": {"critic_learning_rate": 1.0}},
        "ending does not pay": {"reward": {"missing_eos_score": 3.0}},
        "judge is reward": {"compare": {"judge": "reward"}},
    }
    rewards = {"swapped labels": "swapped", "length": "length", "head lost": "headless"}
    return Case(sections.get(name, {}), rewards.get(name, "reward"))


_SHAPED, _PARAMS, _CHOOSE, _LOSS = losses.shaped_rewards, ppo.rollout_params, local_sampler.choose, losses.policy_loss


@contextlib.contextmanager
def _instead(module: Any, name: str, wrong: Any) -> Iterator[None]:
    with mock.patch.object(module, name, wrong):
        yield


def _pays_for_distance(scores: Any, k1: Any, answer_mask: Any, kl_coeff: float) -> Any:
    return _SHAPED(scores, k1, answer_mask, -kl_coeff)


def _cold(recipe: Any) -> Any:
    return replace(_PARAMS(recipe), temperature=0.5)


def _never_ends(logits: Any, draws: Any, params: Any) -> Any:
    return _CHOOSE(logits.index_fill(-1, torch.tensor([2]), -torch.inf), draws, params)


def _beside(log_probs: Any, old: Any, *more: Any) -> Any:
    return _LOSS(log_probs, old.roll(1), *more)


def swapped(rows: Rows) -> Rows:
    """Return preferences with every choice swapped."""
    return [row | {"choice": 1 - row["choice"]} for row in rows]


def by_length(rows: Rows) -> Rows:
    """Return preferences of an annotator who takes the longer answer; of equal length, the first."""
    return [row | {"choice": int(len(row["candidate_1"].split()) > len(row["candidate_0"].split()))} for row in rows]


def headless(reward: Path, out: Path) -> None:
    """Copy a reward model's folder, and lose its head."""
    for file in (reward / "model").iterdir():
        (out / "model").mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            weights = safetensors.numpy.load(content)
            weights["score.weight"] = np.zeros_like(weights["score.weight"])
            content = safetensors.numpy.save(weights, metadata={"format": "pt"})
        files.write_atomic(out / "model" / file.name, content)
    for name in ("stage.json", "metrics.jsonl", "quality.json"):
        files.write_atomic(out / name, (reward / name).read_bytes())


LOOK = {
    "healthy": "is its score rising, its KL small, and do its answers end?",
    "kl sign": "which way does the leash pull, while the score falls?",
    "temperature": "are the sampled tokens as surprising as the policy says they should be?",
    "no end": "do answers end that ended before training?",
    "ending does not pay": "which answers have the highest score?",
    "swapped labels": "do you like the answers that the reward likes?",
    "length": "what do score and length do, step by step?",
    "rate too high": "how far does one update go?",
    "rate too low": "how far does one update go?",
    "judge is reward": "who says that it is better?",
    "log-probs shifted": "what is the ratio before the first update?",
    "critic": "what does the critic explain?",
    "head lost": "what distinguishes two answers, for this reward?",
}


@exercise
def diagnose(answer: Mapping[str, str]) -> None:
    """Check diagnoses by letter; those that are missing are not counted as wrong."""
    if unknown := set(answer.values()) - set(NAMES):
        raise Wrong(f"no diagnosis is called {', '.join(sorted(unknown))}.")
    if unknown := set(answer) - set(LETTERS):
        raise Wrong(f"there is no case {', '.join(sorted(unknown))}.")
    wrong = [letter for letter, name in answer.items() if LETTERS[letter] != name]
    if wrong:
        asks = "\n".join(f"  {letter}: {LOOK[LETTERS[letter]]}" for letter in sorted(wrong))
        raise Wrong(f"{len(answer) - len(wrong)} of {len(answer)} are right. Look again:\n{asks}")
    if len(answer) < len(LETTERS):
        raise Wrong(f"all {len(answer)} are right; {len(LETTERS) - len(answer)} cases are left.")


@exercise
def at_the_first_step(answer: set[str]) -> None:
    """Check the cases whose first step shows what a right program cannot show."""
    impossible = {letter for letter, name in LETTERS.items() if name in ("no end", "log-probs shifted", "temperature")}
    if not isinstance(answer, set) or not answer <= set(LETTERS):
        raise Wrong("answer with a set of letters.")
    if extra := answer - impossible:
        raise Wrong(f"the first ratio and the sampler's gap of {', '.join(sorted(extra))} are as they should be.")
    if answer != impossible:
        raise Wrong(f"{len(answer)} of {len(impossible)}: print both figures of every case's first step.")


@exercise
def equal_curves(answer: set[str]) -> None:
    """Check the two cases that differ in nothing but the verdict."""
    pair = {letter for letter, name in LETTERS.items() if name in ("healthy", "judge is reward")}
    if not isinstance(answer, set) or len(answer) != 2:
        raise Wrong("answer with a set of two letters.")
    if answer != pair:
        raise Wrong("their scores are not the same; compare the columns of two cases number by number.")


@exercise
def what_helps(answer: str) -> None:
    """Check what would have shown that all labels were swapped."""
    if not isinstance(answer, str):
        raise Wrong("answer with one of the four words.")
    if answer == "accuracy":
        raise Wrong("on labels that are swapped too, the accuracy is as high as before.")
    if answer == "loss":
        raise Wrong("the loss measures how well the labels are predicted, whatever they say.")
    if answer == "judge":
        raise Wrong("the judge of that run learned from labels of the same file.")
    if answer != "votes":
        raise Wrong("it is none of the four words.")
