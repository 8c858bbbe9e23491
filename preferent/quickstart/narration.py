"""Texts that introduce each step of the quickstart, with figures of the steps before it."""

from pathlib import Path
from typing import Any

from preferent import files
from preferent.quickstart import true_preference
from preferent.runs import metrics
from preferent.runs.directory import RunDirectory


def introduction(out: Path, task: str) -> str | None:
    """Return the introduction to a task of the run in `out`; None if it has none."""
    text = LESSONS.get(task)
    return None if text is None else text.format_map(_figures(RunDirectory(out), task))


def _figures(run: RunDirectory, task: str) -> dict[str, Any]:
    """Return the figures in the introduction to a task, which come from earlier tasks."""
    if task == "reward":
        rows = metrics.read(run.stage("sft").metrics)
        losses = [loss for row in rows if (loss := row.get("loss")) is not None]
        return {"loss": sum(losses[-20:]) / len(losses[-20:])}
    if task == "judge":
        accuracy = files.read_json(run.stage("reward").quality)["test"]["accuracy"]
        return {
            "accuracy": accuracy,
            "ceiling": true_preference.ceiling(files.read_jsonl(run.preferences("test"))),
        }
    return {}


LESSONS = {
    "data": """
1. THE DATA
Posts for training, validation and test are kept apart. So are the pairs for a second reward model, the judge: it must
be independent of the model that it judges, so it learns from pairs that the first reward model does not see.
""",
    "sft": """
2. IMITATION (sft)
The model reads posts, each with one draft, and learns to predict every next word of the draft. The loss is measured in
nats per token. It begins near 7, no better than a guess, and cannot fall to 0, because the writers' mistakes are
unpredictable. The outcome is the base model: it writes as they do, mistakes included.
""",
    "reward": """
The loss fell to {loss:.2f}. Imitation ends here: more of it would repeat the same mistakes with more confidence.

3. PREFERENCE (reward)
Each pair is two drafts of one post, with the annotator's choice. The base gets a new head that computes one number for
a summary, its reward, and learns to give the preferred draft the higher number. The rank_loss begins near 0.69 = ln 2,
the loss of a coin toss.
""",
    "judge": """
On pairs that it never saw, the reward model agrees with the annotator in {accuracy:.0%} of cases. Perfect knowledge of
the true preference would agree in {ceiling:.0%}, because the annotator makes mistakes; a coin would agree in 50%.

4. A JUDGE
A second reward model learns from other pairs. In the end it decides whether the tuned model is better. The first reward
model cannot, because by then the tuned model has learnt to raise its reward by any means, right or wrong.
""",
    "ppo": """
5. REINFORCEMENT LEARNING (ppo)
Now there are no examples. The model writes summaries, the reward model scores them, and summaries that score better
than expected become more likely. Each nat of distance from the base (the KL) costs kl_coeff, because the reward model
is unreliable far from what people wrote. Watch the reward rise while the KL stays small.
""",
    "infer-base": """
6. ANSWERS TO THE TEST (infer)
The base, the tuned model and the model from scratch summarize posts whose combinations of facts occur in no training
data.
""",
    "compare": """
7. THE VERDICT (compare)
The judge compares the base's and the tuned model's summary of each post. The figures say which is better, and how
certain that is.
""",
}
