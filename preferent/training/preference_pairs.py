"""Pairs of answers as token ids, one of them chosen: what a reward model and a directly tuned policy learn from."""

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
    """Chosen and rejected answers with their prompts, as token ids; how long each answer is; the probability that the
    label is wrong, and the margin by which the chosen answer should win. Of a tie, either may stand as the chosen."""

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
        """Encode; ties are counted, and used only if asked for. `margin` is times each pair's strength."""
        used = [p for p in preferences if ties or p.choice != "tie"]
        tied = np.array([p.choice == "tie" for p in used], dtype=bool)
        prompts = [p.prompt for p in used]
        asked = tokenizer.encode_prompts(prompts, recipe.instruction, recipe.prompt_sequence_length)
        chosen = [p.candidate_0 if p.choice == "tie" else p.chosen for p in used]
        rejected = [p.candidate_1 if p.choice == "tie" else p.rejected for p in used]
        texts = [prompt.text for prompt in asked]
        sides = [
            tokenizer.encode_answers(texts, answers, recipe.target_sequence_length) for answers in (chosen, rejected)
        ]
        joined = [[np.array(p.ids + ids, np.int32) for p, (ids, _) in zip(asked, side, strict=True)] for side in sides]
        tokens = [np.array([len(ids) for ids, _ in side]) for side in sides]
        cut = sum(p.cut or one or other for p, (_, one), (_, other) in zip(asked, *sides, strict=True))
        wrong = np.where(tied, 0.5, label_smoothing)
        margins = np.where(tied, 0.0, margin * strengths(used)) if margin else np.zeros(len(used))
        return cls(*joined, *tokens, wrong, margins, sum(p.choice == "tie" for p in preferences), cut)

    def __len__(self) -> int:
        return len(self.chosen)

    def plan(self, rows: np.ndarray, max_tokens: int) -> list[np.ndarray]:
        """Micro-batches of pairs; both answers of a pair are computed together."""
        lengths = [2 * max(len(self.chosen[i]), len(self.rejected[i])) for i in rows]
        return [rows[part] for part in batching.plan(lengths, max_tokens)]


def strengths(preferences: Sequence[Preference]) -> np.ndarray:
    """How clear each choice was, 0 where nobody said; `DataError` below 0."""
    for preference in preferences:
        if preference.strength is not None and preference.strength < 0:
            raise DataError(
                f"{preference.source}: strength is {preference.strength:g}; as a margin it is at least 0: the chosen "
                "answer is named by `choice`, not by the sign"
            )
    return np.array([preference.strength or 0.0 for preference in preferences])
