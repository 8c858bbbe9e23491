"""The verdict on the continuation example: `python verdict.py DATA RUN [--books FILE]`.

Answers all held-out openings with the model before and after tuning and with the best of four answers before it, at the
temperature of training, into `RUN/verdict`, and prints tables: the reward beside TF-IDF on the held-out pairs; the
outside judge's preference, over all answers and over those of like length, and of what people preferred beside it;
whether it is still English; and the preference over the KL while it was tuned. DATA is the folder of `prepare.py`.
"""

import argparse
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from preferent import files
from preferent.config import defaults, stage_graph
from preferent.config import recipe as recipes
from preferent.data import datasets
from preferent.data.types import Demonstration
from preferent.evaluation import statistics
from preferent.evaluation.statistics import best_of
from preferent.models import language_models
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.rewards.scoring import CombinedReward
from preferent.runs import metrics
from preferent.runs.directory import StageDirectory
from preferent.training import sequences
from preferent.training.sequences import Sequences

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "examples/ethics"))
from outside import Outside, optimised, pairs  # noqa: E402

LIKE = 2
"""Tokens by which two answers of like length differ at most."""
BEST_OF = 4
PACKED, BOOK_TOKENS = 256, 1 << 16
"""Tokens of a sequence of book text, and of all that is measured."""
MICRO_BATCH_TOKENS = 4096
TOGETHER = 4
"""Steps that make one point of the curve."""


@dataclass(frozen=True)
class Answers:
    """The answers of one writer, one to an opening each; `tokens` without the end."""

    name: str
    openings: list[str]
    texts: list[str]
    ended: list[bool]
    tokens: list[list[int]]
    kl: float | None = None

    @classmethod
    def of(cls, name: str, openings: list[str], texts: list[str], ended: list[bool], policy: Policy) -> "Answers":
        tokens = [policy.tokenizer.encode_text(opening + text) for opening, text in zip(openings, texts, strict=True)]
        starts = [len(policy.tokenizer.encode_text(opening)) for opening in openings]
        return cls(name, openings, texts, ended, [ids[start:] for ids, start in zip(tokens, starts, strict=True)])

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.tokens])

    def distinct(self) -> float:
        """Share of different answers."""
        return len(set(self.texts)) / len(self.texts)

    def grams(self, n: int) -> list[list[tuple[str, ...]]]:
        """The n-grams of words in each answer."""
        words = [text.lower().split() for text in self.texts]
        return [[tuple(row[i : i + n]) for i in range(len(row) - n + 1)] for row in words]

    def distinct_grams(self, n: int) -> float:
        """Share of different n-grams among all."""
        found = [gram for row in self.grams(n) for gram in row]
        return len(set(found)) / max(1, len(found))

    def commonest(self, n: int) -> tuple[float, str]:
        """The largest share of answers that have one n-gram, and that n-gram."""
        counts = Counter(gram for row in self.grams(n) for gram in set(row))
        gram, count = max(counts.items(), key=lambda item: item[1], default=((), 0))
        return count / len(self.texts), " ".join(gram)

    def perplexity(self, policy: Policy) -> float:
        """Under a model, of the tokens after the openings."""
        rows, starts = [], []
        for opening, ids in zip(self.openings, self.tokens, strict=True):
            if ids:
                before = policy.tokenizer.encode_text(opening)
                rows.append(np.array(before + ids, np.int32))
                starts.append(len(before))
        return math.exp(sequences.mean_loss(policy, Sequences(rows, starts), MICRO_BATCH_TOKENS))


def preferent(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "preferent", *map(str, words)], check=True)


def answer(
    run: Path, name: str, model: str, openings: Path, *more: str, most: int | None = None
) -> list[dict[str, Any]]:
    """The rows of a model's answers, which stay in the run; at most so many."""
    out = run / "verdict" / name
    preferent(
        *("infer", "--recipe", run / "recipe.yaml", "--set", f"infer.max_prompts={'null' if most is None else most}"),
        *("--in", f"model={run / model}", "--in", f"prompts={openings}", "--out", out, *more),
    )
    return files.read_jsonl(out / "text.jsonl")


def share(right: np.ndarray) -> str:
    """A share with its Wilson interval."""
    low, high = statistics.wilson(int(right.sum()), len(right))
    return f"{right.mean():.3f} ({low:.3f} to {high:.3f})"


def reward_model(run: Path) -> CombinedReward:
    """The reward model that the run trained, without the other sources of the reward."""
    asked = defaults.filled(recipes.load(run / "recipe.yaml")[0], defaults.AT_ONCE)[0]
    alone = asked.model_copy(update={"reward": asked.reward.model_copy(update={"sources": None})})
    models = {name: run / path for name, path in stage_graph.rewards(asked).items()}
    return CombinedReward.load(alone, models, World.of(asked))


def reward_table(data: Path, run: Path) -> None:
    held_out = pairs(data / "held_out.jsonl")
    prompts = [pair.prompt.input_text for pair in held_out]
    chosen, rejected = [pair.chosen for pair in held_out], [pair.rejected for pair in held_out]
    alone, whole_reward = (
        reward.score_texts(prompts, chosen) > reward.score_texts(prompts, rejected)
        for reward in (reward_model(run), optimised(run))
    )
    same = Outside(pairs(run / "data/preference/train.jsonl"))
    sides = ([p + text for p, text in zip(prompts, texts, strict=True)] for texts in (chosen, rejected))
    better, worse = (same.score(texts) for texts in sides)
    by_words = better > worse
    only = int((alone & ~by_words).sum()), int((by_words & ~alone).sum())
    p = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    print(f"\n| {len(held_out)} held-out pairs | right, 95 % |\n|---|---|")
    print(f"| the reward model | {share(alone)} |\n| with the other sources of the reward | {share(whole_reward)} |")
    print(f"| TF-IDF on the same training pairs | {share(by_words)} |")
    print(f"\nright by the reward model alone {only[0]}, by TF-IDF alone {only[1]}: McNemar exact p = {p:.2g}")


def won(judge: Outside, tuned: Sequence[str], base: Sequence[str], keys: Sequence[str]) -> statistics.WinRate:
    return statistics.win_rate(np.sign(judge.score(tuned) - judge.score(base)) / 2 + 0.5, list(keys))


def told(found: statistics.WinRate) -> str:
    low, high = found.interval
    return f"{found.win_rate:.1%} ({low:.1%} to {high:.1%}) of {found.n}"


def whole(answers: Answers) -> list[str]:
    return [opening + text for opening, text in zip(answers.openings, answers.texts, strict=True)]


def verdict_table(judge: Outside, base: Answers, others: Sequence[Answers]) -> None:
    print("\n| against the base | KL | outside judge prefers | of like length, both ended |\n|---|---|---|---|")
    for other in others:
        alike = [
            i
            for i, (a, b) in enumerate(zip(base.lengths, other.lengths, strict=True))
            if abs(a - b) <= LIKE and base.ended[i] and other.ended[i]
        ]
        cells = []
        for rows in (range(len(base.texts)), alike):
            sides = ([whole(side)[i] for i in rows] for side in (other, base))
            cells.append(told(won(judge, *sides, [base.openings[i] for i in rows])) if rows else "none")
        print(f"| {other.name} | {'' if other.kl is None else f'{other.kl:.2f}'} | {cells[0]} | {cells[1]} |")


def english_table(untouched: Policy, writers: Sequence[Answers]) -> None:
    print("\n| | perplexity | distinct answers | distinct 3-grams | commonest 4-gram | median tokens | ended |")
    print("|---|---|---|---|---|---|---|")
    for writer in writers:
        commonest, gram = writer.commonest(4)
        print(
            f"| {writer.name} | {writer.perplexity(untouched):.1f} | {writer.distinct():.3f} | "
            f"{writer.distinct_grams(3):.3f} | {commonest:.1%} “{gram}” | {np.median(writer.lengths):.0f} | "
            f"{np.mean(writer.ended):.0%} |"
        )


def books(policy: Policy, path: Path) -> float:
    """Perplexity of the first tokens of book text."""
    records: list[Demonstration] = datasets.read([str(path)], "text").records
    packed = sequences.packed(policy, records[:200], PACKED)
    rows = np.arange(min(len(packed), BOOK_TOKENS // PACKED))
    return math.exp(sequences.mean_loss(policy, packed.part(rows), MICRO_BATCH_TOKENS))


def curve(judge: Outside, run: Path, base: dict[str, str]) -> None:
    """The outside judge on what was sampled while tuning, a few steps together, beside the KL then."""
    kl = {
        row["step"]: row["kl_loss"] for row in metrics.read(StageDirectory(run / "policy").metrics) if "kl_loss" in row
    }
    samples = sampled(run)
    print("\n| steps | KL of the samples | outside judge prefers them to the base |\n|---|---|---|")
    steps = sorted({row["step"] for row in samples})
    for some in (steps[i : i + TOGETHER] for i in range(0, len(steps), TOGETHER)):
        rows = [row for row in samples if row["step"] in some]
        tuned, plain = (
            [row["input"] + row["answer"] for row in rows],
            [row["input"] + base[row["input"]] for row in rows],
        )
        found = won(judge, tuned, plain, [row["input"] for row in rows])
        mean = np.mean([kl[step + 1] for step in some if step + 1 in kl])
        print(f"| {some[0]} to {some[-1]} | {mean:.2f} | {told(found)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--books", type=Path, help="text of books, to see what tuning cost")
    parser.add_argument("--openings", type=int, metavar="N", help="answer the first N alone")
    asked = parser.parse_args()
    data, run = asked.data, asked.run
    found, _ = recipes.load(run / "recipe.yaml")
    world = World.of(found)
    untouched = language_models.load_policy(Path(found.large_model_reference), world)
    reward_table(data, run)
    judge, held_out = Outside(pairs(data / "outside.jsonl")), data / "openings.jsonl"
    chosen = ("--set", f"infer.best_of={BEST_OF}", "--in", f"reward={run / 'reward/model'}")
    reference = ("--in", f"reference={run / 'sft/model'}")
    rows = {
        "base": answer(run, "base", "sft/model", held_out, most=asked.openings),
        "tuned": answer(run, "tuned", "policy/model", held_out, *reference, most=asked.openings),
        f"best of {BEST_OF} of the base": answer(run, "best", "sft/model", held_out, *chosen, most=asked.openings),
    }
    openings = [row["inputs"]["inputs_pretokenized"] for row in rows["base"]]
    base, tuned, best = (
        Answers.of(name, openings, [row["prediction"] for row in of], [row["ended"] for row in of], untouched)
        for name, of in rows.items()
    )
    kl = float(np.mean([row["kl"] for row in rows["tuned"]]))
    held = pairs(data / "held_out.jsonl")
    preferred = {pair.prompt.input_text: pair.chosen for pair in held}
    better = [preferred[opening] for opening in openings]
    chosen_by_people = Answers.of("what people preferred", openings, better, [True] * len(openings), untouched)
    measured = [replace(tuned, kl=kl), replace(best, kl=best_of.kl_bound(BEST_OF)), chosen_by_people]
    verdict_table(judge, base, measured)
    held = held[: asked.openings]
    texts = [text for pair in held for text in (pair.candidate_0, pair.candidate_1)]
    asked_openings = [pair.prompt.input_text for pair in held for _ in range(2)]
    people = Answers.of("people", asked_openings, texts, [True] * len(texts), untouched)
    english_table(untouched, [base, tuned, best, people])
    trained = answer_training(run)
    curve(judge, run, trained)
    if asked.books:
        after = language_models.load_policy(run / "policy/model", world)
        before, now = books(untouched, asked.books), books(after, asked.books)
        print(f"\nperplexity of books: {before:.2f} untouched, {now:.2f} tuned: {now / before:.3f} of it")


def sampled(run: Path) -> list[dict[str, Any]]:
    """What was sampled while tuning."""
    return files.read_jsonl(StageDirectory(run / "policy").samples)


def answer_training(run: Path) -> dict[str, str]:
    """The base's answers to the openings that were tuned on."""
    prompts = run / "verdict/training.jsonl"
    files.write_jsonl(prompts, [{"input_text": text} for text in dict.fromkeys(row["input"] for row in sampled(run))])
    rows = answer(run, "training", "sft/model", prompts)
    return {row["inputs"]["inputs_pretokenized"]: row["prediction"] for row in rows}


if __name__ == "__main__":
    main()
