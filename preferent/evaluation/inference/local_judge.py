"""A causal language model that judges in this process, by the probabilities of its verdicts.

The explanation, where one is wanted, is sampled. The three possible verdict lines are then scored as continuations; the
probabilities of their labels are the softmax of the sums of their tokens' log-probabilities, so every reply has a
verdict. Random draws depend on the seed and the call, never on the calls in the same batch.
"""

import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from preferent import files, randomness
from preferent.config.comparison_sections import JudgeSection
from preferent.config.defaults import decided
from preferent.config.recipe import Recipe
from preferent.data.types import Message, Prompt, Rollout
from preferent.evaluation.judges import chat_completion, reply_cache, verdict_parsing
from preferent.evaluation.judges.protocol import Call, Reply
from preferent.models import language_models
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.rollouts import measurement, sampler
from preferent.rollouts.decoding import Params
from preferent.rollouts.sampler import Sampler
from preferent.runs import interruption

DRAWN = "judge"
"""The purpose of this module's random numbers."""


@dataclass(frozen=True)
class LocalModelJudge:
    """A model in this process, as the recipe describes it.

    Questions and replies that are decoded together have at most `positions` tokens, the limit of the recipe's sampler.
    """

    judge: JudgeSection
    policy: Policy
    sampler: Sampler
    seed: int
    positions: int
    micro_batch_tokens: int
    identity: Mapping[str, Any]

    @classmethod
    def load(cls, judge: JudgeSection, recipe: Recipe, folder: Path, world: World) -> "LocalModelJudge":
        """Load the judge from its model's folder; it reads in its own chat template."""
        identity: dict[str, Any] = {
            "model": files.fingerprint(folder),
            "seed": recipe.seed,
            "explanation": judge.explanation,
        }
        policy = language_models.load_policy(folder, world.with_own_templates())
        positions = decided(recipe.sampler.rows) * (recipe.prompt_sequence_length + recipe.target_sequence_length)
        identity |= chat_completion.parameters(judge)
        engine = sampler.make(recipe, policy, rows=positions)
        return cls(judge, policy, engine, recipe.seed, positions, decided(recipe.compare.micro_batch_tokens), identity)

    def ask(self, calls: Sequence[Call]) -> Generator[tuple[Call, Reply], None, None]:
        """Yield the calls with their replies, in batches."""
        encoded = self.policy.tokenizer.encode_prompts([self._prompt(call) for call in calls], None, sys.maxsize)
        texts = [prompt.text for prompt in encoded]
        ids = [np.asarray(prompt.ids, np.int32) for prompt in encoded]
        self._warn([len(row) for row in ids])
        longest = max((len(row) for row in ids), default=0) + self.judge.max_tokens
        size = max(1, self.positions // longest)
        for start in range(0, len(calls), size):
            interruption.stop().check()
            part = slice(start, start + size)
            began = time.monotonic()
            replies = self._replies(calls[part], texts[part], ids[part])
            seconds = (time.monotonic() - began) / len(replies)
            for call, reply in zip(calls[part], replies, strict=True):
                yield call, replace(reply, seconds=seconds)

    def _prompt(self, call: Call) -> Prompt:
        """Return a call as this model reads it: by its chat template, or as plain text where it has none."""
        inert = self.policy.tokenizer.inert
        messages = tuple(Message(message.role, inert(message.content)) for message in call.messages)
        if self.policy.tokenizer.has_chat_template:
            return Prompt(messages=messages)
        return Prompt("\n\n".join(message.content for message in messages) + "\n\n")

    def _warn(self, lengths: Sequence[int]) -> None:
        """Print how many questions exceed the model's context length."""
        longest = getattr(self.policy.body.config.get_text_config(), "max_position_embeddings", None)
        more = self.judge.max_tokens if self.judge.explanation else 0
        if longest and (over := sum(length + more > longest for length in lengths)):
            print(
                f"{self.judge.name}: {over} of {len(lengths)} questions, with the reply, are longer than the {longest} "
                f"tokens that {self.policy.source} reads; its verdicts on them are doubtful",
                file=sys.stderr,
            )

    def _replies(self, calls: Sequence[Call], texts: Sequence[str], ids: Sequence[np.ndarray]) -> list[Reply]:
        items = [int(reply_cache.key(call, self.identity)[:15], 16) for call in calls]
        explained = self._explained(texts, ids, items) if self.judge.explanation else [Reply("", tokens=0)] * len(ids)
        shares = self._shares(texts, ids, [reply.text for reply in explained])
        uniforms = randomness.uniforms(self.seed, f"{DRAWN} verdict", items, 0)
        known = self.judge.log_probs
        labels = [
            chosen(row, chat_completion.temperature(self.judge), float(u))
            for row, u in zip(shares, uniforms, strict=True)
        ]
        return [
            replace(
                reply,
                text=_with_verdict(reply.text, label),
                probabilities=dict(zip(verdict_parsing.LABELS, row.tolist(), strict=True)) if known else None,
                tokens=len(prompt) + (reply.tokens or 0),
            )
            for reply, label, row, prompt in zip(explained, labels, shares, ids, strict=True)
        ]

    def _explained(self, questions: Sequence[str], ids: Sequence[np.ndarray], items: Sequence[int]) -> list[Reply]:
        """Return explanations, each up to the point where it would give its verdict."""
        temperature = chat_completion.temperature(self.judge)
        params = Params(self.judge.max_tokens, temperature or 1.0, greedy=temperature == 0)
        rollouts = self.sampler.sample(ids, items, DRAWN, 0, params)
        texts = self.policy.tokenizer.decode_answers(questions, [rollout.ids.tolist() for rollout in rollouts])
        return [
            Reply(
                verdict_parsing.before(text),
                tokens=len(rollout.ids),
                cut=not rollout.ended and not verdict_parsing.LINE.search(text),
            )
            for text, rollout in zip(texts, rollouts, strict=True)
        ]

    def _shares(self, questions: Sequence[str], ids: Sequence[np.ndarray], before: Sequence[str]) -> np.ndarray:
        """Return the probabilities [n, 3] of the labels after each explanation."""
        tokenizer, count = self.policy.tokenizer, len(verdict_parsing.LABELS)
        texts = [_with_verdict(text, label) for text in before for label in verdict_parsing.LABELS]
        answers = tokenizer.encode_answers(
            [text for text in questions for _ in verdict_parsing.LABELS], texts, sys.maxsize
        )
        rows = [np.asarray(answer[:-1], np.int32) for answer, _ in answers]
        rollouts = [
            Rollout(number, 0, 0, ids[number // count], row, np.zeros(len(row), np.float32), False)
            for number, row in enumerate(rows)
        ]
        micros = measurement.micro_batches(
            rollouts, self.micro_batch_tokens, tokenizer.pad_id, self.policy.world.device
        )
        shape = len(rows), max(len(row) for row in rows)
        log_probs = measurement.measure(self.policy, None, micros, shape, 1.0).log_probs.cpu().double().numpy()
        starts = np.repeat([_common(rows[at : at + count]) for at in range(0, len(rows), count)], count)
        own = np.arange(shape[1]) >= starts[:, None]
        return shares_of((log_probs * own).sum(-1).reshape(-1, count))


def _common(rows: Sequence[np.ndarray]) -> int:
    """Return the length of the rows' common prefix."""
    return next(
        (place for place, ids in enumerate(zip(*rows, strict=False)) if len(set(ids)) > 1), len(min(rows, key=len))
    )


def shares_of(sums: np.ndarray) -> np.ndarray:
    """Return log-probabilities [n, 3] up to a constant as probabilities [n, 3] that sum to 1."""
    likelihoods = np.exp(sums - sums.max(-1, keepdims=True))
    shares: np.ndarray = likelihoods / likelihoods.sum(-1, keepdims=True)
    return shares


def chosen(shares: np.ndarray, temperature: float, uniform: float) -> str:
    """Return the label of the largest probability [3], the first among equals; above temperature 0, draw one."""
    if temperature == 0:
        return verdict_parsing.LABELS[int(shares.argmax())]
    with np.errstate(divide="ignore"):
        cumulative = shares_of(np.log(shares)[None] / temperature)[0].cumsum()
    return verdict_parsing.LABELS[min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), 2)]


def _with_verdict(explanation: str, label: str) -> str:
    return f"{explanation}\nVerdict: {label}" if explanation else f"Verdict: {label}"
