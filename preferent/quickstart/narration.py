"""What a teacher says before each step of the quickstart, with what came out of the steps before."""

from pathlib import Path
from typing import Any

from preferent import files
from preferent.quickstart import true_preference
from preferent.runs import metrics


def introduce(out: Path, task: str) -> str | None:
    """The words before a task of the run in `out`; None where it needs none."""
    words = LESSONS.get(task)
    return None if words is None else words.format_map(_figures(out, task))


def _figures(out: Path, task: str) -> dict[str, Any]:
    """What the words before a task tell of the tasks before it."""
    if task == "reward":
        losses = [loss for row in metrics.read(out / "sft" / "metrics.jsonl") if (loss := row.get("loss")) is not None]
        return {"loss": sum(losses[-20:]) / len(losses[-20:])}
    if task == "judge":
        accuracy = files.read_json(out / "reward" / "quality.json")["test"]["accuracy"]
        return {
            "accuracy": accuracy,
            "ceiling": true_preference.ceiling(files.read_jsonl(out / "data/preference/test.jsonl")),
        }
    return {}


LESSONS = {
    "data": """
1. THE DATA
Posts for training, for choosing and for the exam are kept apart, and so are the pairs from which a second reward model,
the judge, will learn: who is to be judged by it must not have met it.
""",
    "sft": """
2. IMITATION (sft)
The model reads posts, each with one draft, and learns to make every next word of the draft likely. The loss is its
surprise, in nats a word. It begins near 7, worse than a guess, and cannot fall to 0, for the writers are hurried in
ways that nobody can foresee. What comes out is the base: it writes as they do, faults and all.
""",
    "reward": """
The loss came down to {loss:.2f}. Imitation ends here: more of it makes the same faults, only more surely.

3. TASTE (reward)
Two drafts of one post, and which of them the annotator preferred: that is all that people have to give. The base gets a
new head that says one number about a summary, its reward, and learns to give the preferred one the higher number. The
rank_loss begins near 0.69, which is ln 2: a tossed coin.
""",
    "judge": """
On pairs that it never saw the reward model agrees with the annotator in {accuracy:.0%}. Who knew the true preference
would agree in {ceiling:.0%}, for the annotator errs; a coin in 50%.

4. A JUDGE
The same once more, from other pairs. It will say in the end whether the tuned model is better: the first reward model
may not, since by then the tuned model will have learnt what pleases it, right or wrong.
""",
    "ppo": """
5. PRACTICE (ppo)
Now nobody shows how to write. The model writes summaries, the reward model scores them, and what scored better than
expected becomes likelier. A leash holds it back: every nat that it goes from the base (the KL) costs kl_coeff, because
far from what people wrote the reward model's opinion is worth little. Watch reward rise while kl stays small.
""",
    "infer-base": """
6. THE EXAM (infer)
Base and tuned model, and the model from nothing, summarize posts that tell of combinations nobody has ever told.
""",
    "compare": """
7. THE VERDICT (compare)
Base and tuned summary of each post side by side: the judge says which is better, and how sure that makes us.
""",
}
