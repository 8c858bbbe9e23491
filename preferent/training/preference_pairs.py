"""Chosen and rejected answers as token ids: the training data of reward models and of DPO."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preferent.config.recipe import Recipe
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Preference
from preferent.errors import DataError
from preferent.models import batching


@dataclass(frozen=True)
class PreferencePairs:
    """Chosen and rejected answers after their prompts, as token ids [n], with the number of tokens of each answer.

    `wrong` is the probability that a label is wrong, `margins` the difference by which the chosen answer should win. In
    a tie either answer may be listed as chosen.
    """

    chosen: list[np.ndarray]
    rejected: list[np.ndarray]
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray
    wrong: np.ndarray
    margins: np.ndarray
    ties: int
    truncated: int

    @classmethod
    def of(
        cls,
        preferences: Sequence[Preference],
        tokenizer: Tokenizer,
        recipe: Recipe,
        ties: bool = False,
        label_smoothing: float = 0.0,
        margin: float = 0.0,
    ) -> "PreferencePairs":
        """Encode preferences; use ties only if `ties` is set. `margin` is multiplied by the strength of a pair."""
        used = [p for p in preferences if ties or p.choice != "tie"]
        tied = np.array([p.choice == "tie" for p in used], dtype=bool)
        prompts = [p.prompt for p in used]
        encoded = tokenizer.encode_prompts(prompts, recipe.instruction, recipe.prompt_sequence_length)
        chosen = [p.candidate_0 if p.choice == "tie" else p.chosen for p in used]
        rejected = [p.candidate_1 if p.choice == "tie" else p.rejected for p in used]
        texts, ends = [prompt.text for prompt in encoded], [prompt.end for prompt in encoded]
        sides = [
            tokenizer.encode_answers(texts, answers, recipe.target_sequence_length, ends)
            for answers in (chosen, rejected)
        ]
        chosen_ids, rejected_ids = (
            [np.array(p.ids + ids, np.int32) for p, (ids, _) in zip(encoded, side, strict=True)] for side in sides
        )
        chosen_tokens, rejected_tokens = (np.array([len(ids) for ids, _ in side]) for side in sides)
        truncated = sum(
            prompt.cut or cut_chosen or cut_rejected
            for prompt, (_, cut_chosen), (_, cut_rejected) in zip(encoded, *sides, strict=True)
        )
        wrong = np.where(tied, 0.5, label_smoothing)
        margins = np.where(tied, 0.0, margin * strengths(used)) if margin else np.zeros(len(used))
        count = sum(p.choice == "tie" for p in preferences)
        return cls(chosen_ids, rejected_ids, chosen_tokens, rejected_tokens, wrong, margins, count, truncated)

    def __len__(self) -> int:
        return len(self.chosen)

    def plan(self, rows: np.ndarray, max_tokens: int) -> list[np.ndarray]:
        """Cut the pairs at `rows` into micro-batches; both answers of a pair are in the same one."""
        lengths = [2 * max(len(self.chosen[i]), len(self.rejected[i])) for i in rows]
        return [rows[part] for part in batching.plan(lengths, max_tokens)]


def strengths(preferences: Sequence[Preference]) -> np.ndarray:
    """Return the strength of each preference, 0 where it has none; raise `DataError` for one below 0."""
    for preference in preferences:
        if preference.strength is not None and preference.strength < 0:
            raise DataError(
                f"{preference.source}: strength is {preference.strength:g}, but a margin is at least 0; name the "
                "chosen answer in `choice`, not by the sign of the strength"
            )
    return np.array([preference.strength or 0.0 for preference in preferences])
