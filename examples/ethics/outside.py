"""The outside judge of the ethics example: `python outside.py DATA RUN [RUN …]`.

A Bradley-Terry model on TF-IDF features (scikit-learn), learnt from pairs that no part of preferent has seen. Prints
its own accuracy on the held-out pairs beside that of the reward (the mean of its models) on the same pairs, then tuned
against base on each run's test prompts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from preferent import files
from preferent.config import defaults, recipe, stage_graph
from preferent.data import datasets
from preferent.data.formats import row_reader
from preferent.data.types import Preference
from preferent.evaluation import statistics
from preferent.models.world import World
from preferent.rewards.normalization import ScoreNormalization
from preferent.rewards.scoring import CombinedReward


class Outside:
    """P(first is preferred) = sigma(w · (tfidf(first) - tfidf(second)))."""

    def __init__(self, pairs: Sequence[Preference]) -> None:
        chosen, rejected = ([p.prompt.input_text + side(p) for p in pairs] for side in (_chosen, _rejected))
        self.features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2).fit([*chosen, *rejected])
        difference = self.features.transform(chosen) - self.features.transform(rejected)
        labels = np.repeat([1, 0], len(pairs))
        self.model = LogisticRegression(C=10.0, fit_intercept=False, max_iter=1000)
        self.model.fit(vstack([difference, -difference]), labels)

    def score(self, texts: Sequence[str]) -> np.ndarray:
        return self.features.transform(texts) @ self.model.coef_[0]

    def accuracy(self, pairs: Sequence[Preference]) -> float:
        """Share of pairs whose chosen side scores higher; an equal score counts a half."""
        chosen, rejected = ([p.prompt.input_text + side(p) for p in pairs] for side in (_chosen, _rejected))
        return float((np.sign(self.score(chosen) - self.score(rejected)) / 2 + 0.5).mean())


def _chosen(pair: Preference) -> str:
    return pair.chosen


def _rejected(pair: Preference) -> str:
    return pair.rejected


def pairs(path: Path) -> list[Preference]:
    return row_reader.kept(datasets.read([str(path)], "preference"))


def optimised(folder: Path) -> CombinedReward:
    """The reward that PPO raised in a run: the mean of its reward models."""
    asked, _ = defaults.filled(recipe.load(folder / "recipe.yaml")[0], defaults.AT_ONCE)
    models = {name: folder / path for name, path in stage_graph.rewards(asked).items()}
    return CombinedReward.load(asked, models, World.of(asked), ScoreNormalization.read(folder / "policy/score.json"))


def accuracy(reward: CombinedReward, pairs: Sequence[Preference]) -> float:
    """Share of pairs whose chosen answer the reward scores higher."""
    prompts = [p.prompt.input_text for p in pairs]
    chosen, rejected = (reward.score_texts(prompts, [side(p) for p in pairs]) for side in (_chosen, _rejected))
    return float((np.sign(chosen - rejected) / 2 + 0.5).mean())


def verdict(judge: Outside, folder: Path) -> statistics.WinRate:
    """Tuned against base on the same prompts; equal answers are ties."""
    rows = {name: files.read_jsonl(folder / "predictions" / name / "text.jsonl") for name in ("tuned", "base")}
    assert [r["id"] for r in rows["tuned"]] == [r["id"] for r in rows["base"]]
    scores = {
        name: judge.score([r["inputs"]["inputs_pretokenized"] + r["prediction"] for r in found])
        for name, found in rows.items()
    }
    outcomes = np.sign(scores["tuned"] - scores["base"]) / 2 + 0.5
    return statistics.win_rate(outcomes, [r["id"] for r in rows["tuned"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    asked = parser.parse_args()
    judge = Outside(pairs(asked.data / "outside.jsonl"))
    print(f"outside judge: accuracy {judge.accuracy(pairs(asked.data / 'held_out.jsonl')):.3f} on all held-out pairs")
    for folder in asked.runs:
        held = {name: pairs(folder / "data" / "preference" / f"{name}.jsonl") for name in ("validation", "test")}
        same = Outside(pairs(folder / "data" / "preference" / "train.jsonl"))
        reward = optimised(folder)
        for name, rows in (held | {"held-out": held["validation"] + held["test"]}).items():
            print(
                f"{folder}, {name} pairs ({len(rows)}): reward {accuracy(reward, rows):.3f}, "
                f"TF-IDF on the same training pairs {same.accuracy(rows):.3f}, "
                f"outside judge {judge.accuracy(rows):.3f}"
            )
        found = verdict(judge, folder)
        kl = files.read_json(folder / "comparison" / "metrics.json")["kl"]
        print(
            f"{folder}: tuned preferred in {found.win_rate:.1%} of {found.n} "
            f"({found.interval[0]:.1%} to {found.interval[1]:.1%}), KL {kl['mean']:.2f} nats per answer"
        )


if __name__ == "__main__":
    main()
