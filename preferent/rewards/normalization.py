"""The score that tuning maximises: raw scores normalised per member, combined, weighted and summed.

Raw scores have names: that of the reward, and NAME-2, NAME-3, … for further members of an ensemble.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preferent import files
from preferent.config.recipe import Recipe

Raw = Mapping[str, np.ndarray]
"""Raw scores [n] by name."""

Combine = Literal["mean", "worst", "variance", "weights"]


@dataclass(frozen=True, slots=True)
class Normalizer:
    """score = gain * (raw - bias): a preference probability is unchanged where gain is 1."""

    bias: float = 0.0
    gain: float = 1.0

    @classmethod
    def fit(cls, raw: np.ndarray, kind: str) -> "Normalizer":
        """Fit to raw scores [n] of the reference's answers: `bias` subtracts the mean, `std` also divides by the sd."""
        if kind == "none":
            return cls()
        deviation = float(raw.std())
        return cls(float(raw.mean()), 1 / deviation if kind == "std" and deviation > 1e-8 else 1.0)

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        return self.gain * (raw - self.bias)


@dataclass(frozen=True, slots=True)
class Term:
    """One reward of the sum: its weight, its members' normalisers by name, and how the members are combined."""

    name: str
    weight: float
    members: Mapping[str, Normalizer]
    combine: Combine = "mean"
    variance_coeff: float = 0.0

    def __call__(self, raw: Raw) -> np.ndarray:
        """Return the normalised score [n] without its weight."""
        scores = [normalizer(np.asarray(raw[name], np.float64)) for name, normalizer in self.members.items()]
        return combined(np.stack(scores), self.combine, self.variance_coeff)


@dataclass(frozen=True, slots=True)
class ScoreNormalization:
    """score = sum over terms of weight * normalised score; `prompts` is the number of prompts of the fit."""

    terms: tuple[Term, ...]
    prompts: int = 0

    @classmethod
    def of(cls, recipe: Recipe, members: int) -> "ScoreNormalization":
        """Return the unfitted normalisation of a recipe; the run has `members` reward models."""
        section = recipe.reward
        terms = []
        for part in recipe.reward.parts:
            count = members if part.kind == "reward" and section.combine != "weights" else 1
            names = [part.name if number == 1 else f"{part.name}-{number}" for number in range(1, count + 1)]
            normalizers = dict.fromkeys(names, Normalizer())
            terms.append(Term(part.name, part.weight, normalizers, section.combine, section.variance_coeff))
        return cls(tuple(terms))

    @classmethod
    def read(cls, path: Path) -> "ScoreNormalization":
        """Read a `score.json`."""
        return cls.parse(cls.stored(path))

    @staticmethod
    def stored(path: Path) -> dict[str, Any]:
        """Return the object in a `score.json`."""
        return files.read_sealed(path, "restore it; or remove it, and the stage measures it again")

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> "ScoreNormalization":
        """Return the normalisation from the object in a `score.json`."""
        terms = [
            Term(
                **values
                | {"members": {name: Normalizer(**normalizer) for name, normalizer in values["members"].items()}}
            )
            for values in stored["terms"]
        ]
        return cls(tuple(terms), stored["prompts"])

    def write(self, path: Path) -> None:
        """Write a `score.json`."""
        files.write_sealed(path, asdict(self))

    def fit(self, raw: Raw, kind: str) -> "ScoreNormalization":
        """Return it with every member's normaliser fitted to the member's raw scores of the reference's answers."""
        fitted = {name: Normalizer.fit(np.asarray(values, np.float64), kind) for name, values in raw.items()}
        terms = [replace(term, members={name: fitted[name] for name in term.members}) for term in self.terms]
        return ScoreNormalization(tuple(terms), len(next(iter(raw.values()))))

    def unfitted(self) -> "ScoreNormalization":
        """Return the same weighted sum without normalisation."""
        terms = [replace(term, members=dict.fromkeys(term.members, Normalizer())) for term in self.terms]
        return replace(self, terms=tuple(terms))

    def __call__(self, raw: Raw) -> np.ndarray:
        """Return the score [n]."""
        score: np.ndarray = np.sum([term.weight * term(raw) for term in self.terms], axis=0)
        return score

    def formula(self) -> str:
        """Return the score as a formula of the raw scores' names: `2 · (reward − 0.5) + 0.1 · mean(a − 1, a-2 + 3)`."""
        return " + ".join(_times(term.weight, _inside(term)) for term in self.terms)

    def normalizer(self, name: str) -> Normalizer:
        """Return the normaliser of a member times its term's weight, as if it were the only member of the term."""
        term = next(term for term in self.terms if name in term.members)
        normalizer = term.members[name]
        return Normalizer(normalizer.bias, term.weight * normalizer.gain)


def _inside(term: Term) -> str:
    members = [
        _times(n.gain, f"{name} {'+' if n.bias < 0 else '−'} {abs(n.bias):.3g}" if n.bias else name)
        for name, n in term.members.items()
    ]
    return members[0] if len(members) == 1 else f"{term.combine}({', '.join(members)})"


def _times(factor: float, text: str) -> str:
    inner = f"({text})" if " " in text and not text.endswith(")") else text
    return text if factor == 1 else f"{factor:.3g} · {inner}"


def combined(scores: np.ndarray, how: Combine, variance_coeff: float) -> np.ndarray:
    """Combine the members' normalised scores [members, n] into one score [n] (Coste et al. 2024).

    `worst` is the minimum, `variance` is mean - variance_coeff * the biased variance over the members. With `weights`
    there is one member.
    """
    score: np.ndarray = scores.min(axis=0) if how == "worst" else scores.mean(axis=0)
    if how == "variance":
        score = score - variance_coeff * scores.var(axis=0)
    return score


def overlong(lengths: np.ndarray, max_tokens: int, tokens: int) -> np.ndarray:
    """Return the overlong share [n] of answers: 0 up to the last `tokens` of `max_tokens`, then linear to 1 at the end.

    It is minus the soft overlong punishment of DAPO (Yu et al. 2025).
    """
    return np.clip((np.asarray(lengths) - (max_tokens - tokens)) / tokens, 0.0, 1.0)
