"""Chosen and rejected answers as token ids, and thumbs on single ones: the data of reward models, of DPO and of KTO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preferent.config.recipe import Recipe
from preferent.data.counts import strengths
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Preference, Thumb
from preferent.models import batching


@dataclass(frozen=True)
class PreferencePairs:
    """Chosen and rejected answers after their prompts, as token ids [n], with the number of tokens of each answer.

    `wrong` is the probability that a label is wrong, `margins` the difference by which the chosen answer should win,
    `weights` how much a row counts. In a tie either answer may be listed as chosen. A thumb is a row with one side:
    `sides` [2, n] says which answers there are, chosen and rejected; in place of the other one stands the prompt alone.
    """

    chosen: list[np.ndarray]
    rejected: list[np.ndarray]
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray
    wrong: np.ndarray
    margins: np.ndarray
    weights: np.ndarray
    sides: np.ndarray
    ties: int
    truncated: int

    @classmethod
    def of(
        cls,
        feedback: Sequence[Preference | Thumb],
        tokenizer: Tokenizer,
        recipe: Recipe,
        ties: bool = False,
        label_smoothing: float = 0.0,
        margin: float = 0.0,
    ) -> "PreferencePairs":
        """Encode preferences and thumbs; use ties only if `ties` is set. `margin` times the strength is the margin."""
        used = [row for row in feedback if isinstance(row, Thumb) or ties or row.choice != "tie"]
        tied = np.array([isinstance(row, Preference) and row.choice == "tie" for row in used], dtype=bool)
        encoded = tokenizer.encode_prompts([p.prompt for p in used], recipe.instruction, recipe.prompt_sequence_length)
        texts, ends = [prompt.text for prompt in encoded], [prompt.end for prompt in encoded]
        there = np.array([[answer is not None for answer in row.sides] for row in used], dtype=bool).reshape(-1, 2).T
        sides = [
            tokenizer.encode_answers(texts, [answer or "" for answer in side], recipe.target_sequence_length, ends)
            for side in zip(*(row.sides for row in used), strict=True)
        ] or [[], []]
        chosen, rejected = (
            [
                np.array(p.ids + (ids if kept else []), np.int32)
                for p, (ids, _), kept in zip(encoded, side, keep, strict=True)
            ]
            for side, keep in zip(sides, there, strict=True)
        )
        tokens = np.array([[len(ids) for ids, _ in side] for side in sides], dtype=np.int64).reshape(2, -1) * there
        cut = np.array([[was_cut for _, was_cut in side] for side in sides], dtype=bool).reshape(2, -1)
        truncated = int((np.array([prompt.cut for prompt in encoded], dtype=bool) | (cut & there).any(0)).sum())
        wrong = np.where(tied, 0.5, label_smoothing)
        margins = np.where(tied, 0.0, margin * strengths(used)) if margin else np.zeros(len(used))
        weights = np.array([1.0 if isinstance(row, Thumb) else row.weight or 1.0 for row in used])
        count = sum(isinstance(row, Preference) and row.choice == "tie" for row in feedback)
        return cls(chosen, rejected, tokens[0], tokens[1], wrong, margins, weights, there, count, truncated)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def counts(self) -> dict[str, int]:
        """Return the numbers of pairs, of ties, of truncated rows, and of thumbs if there are any."""
        thumbs = {"good": int((~self.sides[1]).sum()), "bad": int((~self.sides[0]).sum())}
        counts = {"pairs": int(self.sides.all(0).sum()), "ties": self.ties, "truncated": self.truncated}
        return counts | (thumbs if any(thumbs.values()) else {})

    def answers(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the answers that there are at `rows`, after their prompts: the chosen ones, then the rejected ones."""
        there = zip((self.chosen, self.rejected), self.sides[:, rows], strict=True)
        return [side[i] for side, kept in there for i in rows[kept]]

    def plan(self, rows: np.ndarray, max_tokens: int) -> list[np.ndarray]:
        """Cut the pairs at `rows` into micro-batches; both answers of a pair are in the same one."""
        lengths = [2 * max(len(self.chosen[i]), len(self.rejected[i])) for i in rows]
        return [rows[part] for part in batching.plan(lengths, max_tokens)]
