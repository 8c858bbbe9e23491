"""From raw scores to the score that tuning raises: normalised member by member, combined, weighted, summed.

Raw scores go by name: a reward's own, and for the further members of an ensemble NAME-2, NAME-3, …
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
        """From raw scores [n] of the reference's answers: `bias` takes their mean off, `std` scales their deviation to
        1."""
        if kind == "none":
            return cls()
        deviation = float(raw.std())
        return cls(float(raw.mean()), 1 / deviation if kind == "std" and deviation > 1e-8 else 1.0)

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        return self.gain * (raw - self.bias)


@dataclass(frozen=True, slots=True)
class Term:
    """One reward of the sum: its weight, its members' normalisers by name, and how the members become one number."""

    name: str
    weight: float
    members: Mapping[str, Normalizer]
    combine: Combine = "mean"
    variance_coeff: float = 0.0

    def __call__(self, raw: Raw) -> np.ndarray:
        """The normalised score [n], before its weight."""
        each = [normalizer(np.asarray(raw[name], np.float64)) for name, normalizer in self.members.items()]
        return combined(np.stack(each), self.combine, self.variance_coeff)


@dataclass(frozen=True, slots=True)
class ScoreNormalization:
    """score = sum over terms of weight * normalised score; `prompts` is how many set the normalisers."""

    terms: tuple[Term, ...]
    prompts: int = 0

    @classmethod
    def of(cls, recipe: Recipe, members: int) -> "ScoreNormalization":
        """What a recipe asks for, not yet fitted; `members` reward models of the run are there."""
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
        """As a `score.json` keeps it."""
        kept = files.read_sealed(path, "restore it; or remove it, and the stage measures it again")
        return cls.parse(kept)

    @classmethod
    def parse(cls, kept: Mapping[str, Any]) -> "ScoreNormalization":
        """From the object in a `score.json`."""
        terms = [
            Term(**values | {"members": {name: Normalizer(**of) for name, of in values["members"].items()}})
            for values in kept["terms"]
        ]
        return cls(tuple(terms), kept["prompts"])

    def write(self, path: Path) -> None:
        files.write_sealed(path, asdict(self))

    def fit(self, raw: Raw, kind: str) -> "ScoreNormalization":
        """With a normaliser for every member, from its raw scores of the reference's answers."""
        fitted = {name: Normalizer.fit(np.asarray(values, np.float64), kind) for name, values in raw.items()}
        terms = [replace(term, members={name: fitted[name] for name in term.members}) for term in self.terms]
        return ScoreNormalization(tuple(terms), len(next(iter(raw.values()))))

    def unfitted(self) -> "ScoreNormalization":
        """The same without normalisation."""
        terms = [replace(term, members=dict.fromkeys(term.members, Normalizer())) for term in self.terms]
        return replace(self, terms=tuple(terms))

    def __call__(self, raw: Raw) -> np.ndarray:
        """The score [n]."""
        found: np.ndarray = np.sum([term.weight * term(raw) for term in self.terms], axis=0)
        return found

    def formula(self) -> str:
        """The score as a formula of the raw scores' names: `2 · (reward − 0.5) + 0.1 · mean(a − 1, a-2 + 3)`."""
        return " + ".join(_times(term.weight, _inside(term)) for term in self.terms)

    def normalizer(self, name: str) -> Normalizer:
        """What a member's raw scores are worth in the sum, were it alone in its term: with the term's weight."""
        term = next(term for term in self.terms if name in term.members)
        found = term.members[name]
        return Normalizer(found.bias, term.weight * found.gain)


def _inside(term: Term) -> str:
    each = [
        _times(of.gain, f"{name} {'+' if of.bias < 0 else '−'} {abs(of.bias):.3g}" if of.bias else name)
        for name, of in term.members.items()
    ]
    return each[0] if len(each) == 1 else f"{term.combine}({', '.join(each)})"


def _times(factor: float, text: str) -> str:
    inner = f"({text})" if " " in text and not text.endswith(")") else text
    return text if factor == 1 else f"{factor:.3g} · {inner}"


def combined(scores: np.ndarray, how: Combine, variance_coeff: float) -> np.ndarray:
    """One score [n] of the members' normalised scores [members, n] (Coste et al. 2024).

    `mean`; `worst`, the least; `variance`, mean - variance_coeff * variance over the members, the biased one (divided
    by their number). Where weights are averaged there is one member.
    """
    found: np.ndarray = scores.min(axis=0) if how == "worst" else scores.mean(axis=0)
    if how == "variance":
        found = found - variance_coeff * scores.var(axis=0)
    return found


def overlong(lengths: np.ndarray, max_tokens: int, tokens: int) -> np.ndarray:
    """How far answers of `lengths` [n] are into the last `tokens` of `max_tokens`: 0 before them, 1 at the end, linear
    between (the soft overlong punishment of Yu et al. 2025, DAPO, with its sign turned)."""
    return np.clip((np.asarray(lengths) - (max_tokens - tokens)) / tokens, 0.0, 1.0)
