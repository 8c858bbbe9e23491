# %% [markdown]
# # 6. Break it
#
# **A run is done, a curve looks strange, and the answers are odd. What went wrong?**
#
# Nobody learns this from runs that went well. So here are thirteen runs of the same small problem. One is healthy. In
# each of the other twelve one thing was broken on purpose: in the code, in the data, in the recipe, or in the way the
# outcome was judged. You see curves and answers, you say what is wrong, a cell checks it, and then `preferent doctor`
# says what it thinks.
#
# The list of what may be wrong is below. What is wrong in which run stands in `exercises/break_it.py`; do not open it
# yet.

# %%
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from lesson import COLORS, SIZE, at, begin, claim, finish, predict

begin("6_break_it")

import small_world
from exercises import break_it as exercises

import preferent
from preferent import files
from preferent.quickstart import true_preference

for name, meaning in exercises.NAMES.items():
    print(f"{name:20} {meaning}")

# %% [markdown]
# ## What is not broken
#
# All runs start from the same base: a model that has learned to summarize posts as hurried writers do, a reward model
# that learned from an annotator's choices, and a second reward model, the judge, that learned from other choices of
# the same annotator. The world is that of lesson 2, so the annotator's true preference is known, and with it a
# ceiling.

# %%
accuracy_guess = predict("On what share of new pairs will the reward model agree with the annotator?", 0.8)

# %%
# Run
STEPS = at(ci=12, full=18)
LEARN = at(ci=60, full=170)
COMMON = {
    "sft": {"dataset": "demonstrations.jsonl", "train_steps": at(ci=120, full=200), "learning_rate": 0.005}
    | {"warmup_steps": 20, "schedule": "linear", "validation_every": 1000},
    "reward_model_train_steps": LEARN,
    "reward": {"learning_rate": 0.003, "warmup_steps": 10, "schedule": "linear", "validation_every": 1000},
    "reinforcement_learning_train_steps": STEPS,
    "kl_coeff": 0.1,
    "ppo": {"batch_size": at(ci=32, full=56), "epochs": 2, "minibatches": 2, "learning_rate": exercises.RATE}
    | {"critic_learning_rate": 0.001, "warmup_steps": 2, "validation_every": STEPS // 4, "validation_prompts": 64},
    "infer": {"sampling_strategy": "temperature_sampling", "max_prompts": at(ci=64, full=150)},
    "compare": {"judge_share": 0.4},
}
small_world.make(at(ci=2500, full=4000), at(ci=3000, full=7000), 1500, 260)
recipe, base = small_world.recipe(**COMMON), Path("base")
small_world.stage("data", recipe, base / "data")
small_world.stage("sft", recipe, base / "sft", model=Path("model"))
start = base / "sft/model"


def learn(name: str, train: str = "train", seed: int = 0, spoil=None) -> None:
    """Train a reward model in the folder base/NAME, on labels that `spoil` may spoil."""
    parts = small_world.pairs(base, train)
    if spoil is not None:
        for part, path in parts.items():
            parts[part] = base / f"labels of {name}/{part}.jsonl"
            files.write_jsonl(parts[part], spoil(files.read_jsonl(path)))
    small_world.stage("reward", small_world.recipe(**COMMON, seed=seed), base / name, model=start, **parts)


learn("reward")
learn("judge", "judge", seed=1)
learn("swapped", spoil=exercises.swapped)
learn("swapped judge", "judge", seed=1, spoil=exercises.swapped)
learn("length", spoil=exercises.by_length)
test = files.read_jsonl(base / "data/preference/test.jsonl")
ceiling = true_preference.ceiling(test)
accuracy = {name: files.read_json(base / name / "quality.json")["accuracy"] for name in ("reward", "judge", "swapped")}
for name, figures in accuracy.items():
    low, high = figures["interval"]
    print(f"{name:8} right on {figures['share']:.0%} of {figures['count']} pairs ({low:.0%} to {high:.0%})")
print(f"ceiling  {ceiling:.0%}")
accuracy_guess.compare(accuracy["reward"]["share"])
assert accuracy["reward"]["interval"][0] < ceiling
claim("share of the pairs on which the judge is right", accuracy["judge"]["share"], 0.74, 0.06)

# %% [markdown]
# Look at the line *swapped*. That reward model learned from choices that are all turned around, and is tested on
# choices that are all turned around. Its accuracy is as good as that of the others: an accuracy is agreement with
# labels, and says nothing about what the labels mean.
#
# ## The runs
#
# Each case is PPO with its own defect, then answers to posts that no model has seen, then a verdict by the judge. The
# next cell runs all of them, and one more healthy run with another seed, which is drawn in grey behind every curve.
#
# Before you run it: the reward of a healthy run rises. In how many of the thirteen will it rise more than twice as far
# as in the grey one? (Twice, because two healthy runs differ from each other, too.)

# %%
rises_guess = predict("In how many of the 13 runs does the reward rise more than twice as far as in grey?", 1)

# %%
# Run
small_world.stage("infer", recipe, base / "predictions/base", model=start, prompts=base / "data/prompt/test.jsonl")


def link(path: Path, to: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to.resolve())


def run(name: str, case: exercises.Case, judge: str = "judge", seed: int = 0) -> preferent.Run:
    """Tune, answer and compare, with whatever the case breaks."""
    out = Path("runs") / name
    for part in ("data", "predictions/base"):
        link(out / part, base / part)
    link(out / "judge", base / judge)
    if case.reward == "headless":
        exercises.headless(base / "reward", out / "reward")
    else:
        link(out / "reward", base / case.reward)
    sections = {key: {**COMMON[key], **case.sections.get(key, {})} for key in ("reward", "ppo", "compare")}
    asked = small_world.recipe(**{**COMMON, **sections}, seed=seed)
    prompts = {part: out / f"data/prompt/{part}.jsonl" for part in ("train", "validation", "test")}
    parts = {"train": prompts["train"], "validation": prompts["validation"]}
    with case.broken:
        small_world.stage("ppo", asked, out / "policy", model=start, reward=out / "reward/model", **parts)
        tuned = out / "predictions/tuned"
        small_world.stage("infer", asked, tuned, model=out / "policy/model", reference=start, prompts=prompts["test"])
    judges = {"reward": out / "reward/model", "score": out / "policy/score.json"}
    if asked.compare.judge == "independent":
        judges["judge"] = out / "judge/model"
    sides = {"a": tuned / "text.jsonl", "b": out / "predictions/base/text.jsonl", "prompts": prompts["test"]}
    small_world.stage("compare", asked, out / "comparison", **sides, **judges)
    return preferent.Run(out)


grey = run("grey", exercises.Case(), seed=1)
runs = {letter: run(letter, exercises.case(letter)) for letter in exercises.LETTERS}


def curve(done: preferent.Run, figure: str) -> np.ndarray:
    return np.array([row[figure] for row in done.metrics() if row["step"] > 0], float)


def rise(done: preferent.Run) -> float:
    score = curve(done, "objective/scores")
    return float(score[-5:].mean() - score[:2].mean())


print("rise of the reward:", ", ".join(f"{letter} {rise(done):.2f}" for letter, done in {"grey": grey, **runs}.items()))
rising = [letter for letter, done in runs.items() if rise(done) > 2 * rise(grey)]
rises_guess.compare(len(rising), "runs")
if SIZE == "full":
    assert rise(grey) > 0
    assert {exercises.LETTERS[letter] for letter in rising} >= {"swapped labels", "length", "ending does not pay"}
    assert "healthy" not in {exercises.LETTERS[letter] for letter in rising}

# %% [markdown]
# A rising reward proves nothing: where it rises furthest, something is broken. Three of the sabotages make a reward
# that pays for what is easy to write, so these three should go far on any machine. They did on
# an AMD, where this notebook was run; of an Intel, whose last bits differ, it is read off the curves. A threshold among
# the smaller rises would not be a fact about sabotages: by more than a fifth of a score rose five runs on the one, and
# six on the other. Keep that in mind, and look.
#
# For every case you see the reward of the answers, the KL to the base in nats per answer, the length of the answers in
# tokens with the share that ended (dotted, × 10), and the share of clipped tokens (dotted: what the critic explains).
# Grey is a healthy run. Below stand the verdict, two answers, and three numbers of the *first* step: the ratio of new
# to old probabilities before any update, the largest gap between the sampler's log-probability of a token and the
# trainer's, and the KL per token at the end.
#
# The answers are those of the checkpoint that was kept, the best one by validation. Where none was better than the
# base, the base is kept, and its answers show nothing of what the curves did.

# %%
PANELS = {
    "reward": ("objective/scores", None, 1),
    "KL": ("objective/kl", None, 1),
    "length, ended × 10": ("tokens/length", "tokens/ended", 10),
    "clipped, explained": ("policy/clipfrac", "val/explained_variance", 1),
}
BASE = files.read_jsonl(base / "predictions/base/text.jsonl")


def show(letter: str) -> None:
    """Draw the curves of a case, and print its verdict and answers."""
    done = runs[letter]
    _, axes = plt.subplots(1, 4, figsize=(10, 1.9), dpi=64)
    for place, (title, (solid, dotted, times)) in zip(axes, PANELS.items(), strict=True):
        for one, colours in ((grey, ("#bbbbbb", "#bbbbbb")), (done, (COLORS["blue"], COLORS["orange"]))):
            place.plot(curve(one, solid), color=colours[0])
            if dotted:
                place.plot(times * np.clip(curve(one, dotted), -1, None), ":", color=colours[1])
        place.set_title(title, fontsize=10)
    small_world.draw()
    first, last = done.metrics()[1], done.metrics()[-1]
    verdict = done.verdict()
    judge = verdict["judges"][verdict["headline"]]
    low, high = judge["interval"]
    print(f"{letter}: {verdict['headline']} prefers tuned to base in {judge['win_rate']:.0%} ({low:.0%} to {high:.0%})")
    print(f"   ratio {first['val/first_ratio']:.4g}, sampler gap {first['val/sampler_gap']:.2g},", end="")
    print(f" KL per token at the end {last['objective/kl'] / last['tokens/length']:.2f}")
    for before, after in zip(BASE[:2], done.predictions()[:2], strict=True):
        post = before["inputs"]["inputs_pretokenized"].split("\n")[0]
        print(f"   {post}\n      base {before['prediction']}\n     tuned {after['prediction']}")


# %%
show("A")

# %%
show("B")

# %%
show("C")

# %%
show("D")

# %%
show("E")

# %%
show("F")

# %%
show("G")

# %%
show("H")

# %%
show("I")

# %%
show("J")

# %%
show("K")

# %%
show("L")

# %%
show("M")

# %% [markdown]
# ## How to read them
#
# Ask in this order; each question can end the search.
#
# 1. **Is the program right?** Before anything is learned, the ratio is exactly 1 and the sampler and the trainer give
#    a token the same probability. If not, the curves after it mean nothing.
# 2. **Do answers end?** An answer that is cut has lost its end, and with it the place where the score is read.
# 3. **Does anything move?** No KL means no learning. A KL that leaps at once means steps that are too large.
# 4. **What does the reward pay for?** Read answers. If all scores are the same there is nothing to learn. If reward
#    and length rise together, it may be length. If the answers are bad and the reward is high, ask where the reward
#    comes from.
# 5. **Which way does the leash pull?** Well-trained policies come to rest at some KL. One that runs away although its
#    reward has stopped rising is being paid for the distance.
# 6. **Who is the judge?** A verdict by the reward that was optimised is no verdict.
#
# ## Exercises
#
# **1. Diagnose.** Write one of the names of the list above for each letter. You may leave letters out and come back.
# The check says how many are right, and for a wrong one what to look at.

# %%
diagnoses = None  # {"A": "healthy", "B": "kl sign", …}
exercises.diagnose(diagnoses)

# %% [markdown]
# ## The doctor's turn
#
# `preferent doctor RUN` reads the files of a run and applies its rules; it runs no model and does not know what we
# did. A finding is *sick* where the outcome cannot be trusted, *suspicious* where something needs a look.
#
# The healthy run and twelve sabotaged ones: in how many of the twelve does `doctor` find something at all?

# %%
found_guess = predict("In how many of the 12 sabotaged runs does doctor find something?", 9)

# %%
# Run
findings = {letter: done.doctor() for letter, done in runs.items()}
usual = {finding.name for finding in grey.doctor()}
new = {letter: [f for f in found if f.name not in usual] for letter, found in findings.items()}
for letter, found in new.items():
    for severity in ("sick", "suspicious"):
        names = [f.name for f in found if f.severity == severity]
        if names or severity == "sick":
            print(f"{letter if severity == 'sick' else ' '}  {severity:10} {', '.join(dict.fromkeys(names)) or '-'}")
healthy = next(letter for letter in runs if exercises.LETTERS[letter] == "healthy")
caught = [letter for letter, found in new.items() if found and letter != healthy]
found_guess.compare(len(caught), "runs")
if SIZE == "full":
    assert len(caught) >= 11, set(runs) - set(caught)
    assert not [f.name for f in new[healthy] if f.severity == "sick"]

# %% [markdown]
# Did it say what you said? Compare carefully: a finding names a *symptom*, and one symptom has many causes.

# %%
causes = Counter(f.name for found in new.values() for f in found)
for name, count in causes.most_common(8):
    print(f"{name:28} {count} times")
if SIZE == "full":
    assert causes["never-better"] > 3
print()
print("\n".join(str(evidence) for finding in new["D"][:2] for evidence in finding.evidence))

# %% [markdown]
# `never-better` stands at several runs of quite different causes: it says that no checkpoint was better than the base,
# and not why. Only a few findings name a cause by themselves, for instance `first-ratio` (old and new probabilities
# are computed in different ways), `constant-scores`, `not-ending-pays` and `judge-not-independent`. The rest is your
# work: the order of questions above.
#
# And `doctor` can be silent. Its rule about the critic speaks up where the critic predicts *worse* than a constant;
# the critic that was broken here predicts about as well as a constant, which is useless too. Where this lesson was run
# on an AMD the rule spoke up, and on an Intel it did not. The dotted line of the last panel shows it, beside the grey
# one.

# %%
critic = next(letter for letter in runs if exercises.LETTERS[letter] == "critic")
late = {"broken": runs[critic], "healthy": grey}
explained = {name: float(curve(done, "val/explained_variance")[-5:].mean()) for name, done in late.items()}
print({name: round(value, 2) for name, value in explained.items()})
if SIZE == "full":
    assert explained["broken"] < 0.1 < explained["healthy"]

# %% [markdown]
# ## What the truth says
#
# Here, and only in a generated world, we can ask the annotator's true preference, without noise, which answers are
# better. The judge is right on about three quarters of the pairs. In how many of the thirteen runs does its verdict
# say *better* with the whole interval above one half, while the truth does not?

# %%
fooled_guess = predict("In how many of the 13 runs does the verdict say better, and the truth does not?", 2)

# %%
# Run
truth = {letter: true_preference.verdict(BASE, done.predictions()) for letter, done in runs.items()}
fooled = []
_, axes = plt.subplots(figsize=(8, 3))
for place, (letter, done) in enumerate(runs.items()):
    verdict = done.verdict()
    judge = verdict["judges"][verdict["headline"]]
    for shift, one, colour in ((-0.12, judge, COLORS["blue"]), (0.12, truth[letter], COLORS["green"])):
        axes.plot(place + shift, one["win_rate"], "o", color=colour)
        axes.vlines(place + shift, *one["interval"], color=colour)
    if judge["interval"][0] > 0.5 and truth[letter]["interval"][0] <= 0.5:
        fooled.append(letter)
axes.axhline(0.5, color=COLORS["grey"], linestyle=":")
axes.set(xticks=range(13), xticklabels=list(runs), ylabel="tuned preferred to base", ylim=(0, 1))
axes.legend(axes.lines[:2], ["headline’s judge", "true preference"], loc="upper right")
plt.show()
print("verdict says better, truth does not:", ", ".join(fooled) or "none")
low, high = truth[healthy]["interval"]
print(f"healthy, by the truth: {truth[healthy]['win_rate']:.0%} ({low:.0%} to {high:.0%})")
fooled_guess.compare(len(fooled), "runs")

# %% [markdown]
# A run that the truth does not call better need not be worse than its base: the interval of 150 answers reaches one
# half, and the healthy run may be in the list.
#
# The judge is independent of the reward model, and yet both learned from the same annotator, in the same way, and
# share mistakes. So even an honest verdict of a judge is a measurement by an instrument, and the instrument has an
# accuracy. Nothing that is computed from one set of labels can show what is wrong with these labels.
#
# ## What the doctor cannot see
#
# The case with swapped labels was found because the judge's labels were right. Now let *all* labels be swapped, those
# of the judge too, as it happens when an export counts from the wrong end. What will the independent judge say of the
# tuned model?

# %%
swapped_guess = predict("What share of the pairs does the judge with swapped labels give to the tuned model?", 0.5)

# %%
# Run
everywhere = run("everywhere", exercises.Case(reward="swapped"), judge="swapped judge")
verdict = everywhere.verdict()["judges"]["judge"]
gold = true_preference.verdict(BASE, everywhere.predictions())
swapped_guess.compare(verdict["win_rate"])
print(everywhere.headline())
print(f"true preference: {gold['win_rate']:.1%} ({gold['interval'][0]:.0%} to {gold['interval'][1]:.0%})")
print("doctor:", ", ".join(f"{f.name} ({f.severity})" for f in everywhere.doctor()) or "nothing")
for row in everywhere.predictions()[:3]:
    print("  ", row["inputs"]["inputs_pretokenized"].split("\n")[0], "→", row["prediction"])
if SIZE == "full":
    assert verdict["interval"][0] > 0.5 > gold["interval"][1]

# %% [markdown]
# Accuracy, loss curves and an independent judge: all of them agree, and all of them are wrong. `doctor` may say that
# the policy went far, and nothing that it says names the labels: there is no trace of the cause in the files. What can
# see it is a person. We ask one (a script that has the true preference) to vote on 40 of these pairs, blind, as at the
# page of lesson 5.

# %%
asked = []
for row in everywhere.judgments():
    if row["judge"] == "judge" and len(asked) < 40 and row["response_a"] != row["response_b"]:
        place = next(i for i, answer in enumerate(BASE) if str(answer.get("id", i)) == row["id"])
        scores = true_preference.true_scores([everywhere.predictions()[place], BASE[place]])
        choice = "A" if scores[0] > scores[1] else "B" if scores[1] > scores[0] else "tie"
        asked.append({**row, "judge": "people", "choice": choice, "confidence": 1.0, "annotator": "ann"})
files.write_jsonl(Path("votes.jsonl"), asked)
out = everywhere.folder
inputs = {"a": out / "predictions/tuned/text.jsonl", "b": out / "predictions/base/text.jsonl"}
inputs |= {"reward": out / "reward/model", "score": out / "policy/score.json", "judge": out / "judge/model"}
inputs |= {"prompts": out / "data/prompt/test.jsonl", "people": Path("votes.jsonl")}
small_world.stage("compare", recipe, out / "comparison", **inputs)
people = everywhere.verdict()["judges"]["people"]
low, high = people["interval"]
print(f"people prefer the tuned model in {people['win_rate']:.0%} of {len(asked)} pairs ({low:.0%} to {high:.0%})")
contradicted = [f for f in everywhere.doctor() if f.name == "judge-against-people"]
for finding in contradicted[:1]:
    print(f"doctor: {finding.name} ({finding.severity}): {finding.says} {finding.advice}")
if SIZE == "full":
    assert contradicted and high < 0.5

# %% [markdown]
# Forty votes turned a triumph into what it is. That is the cheapest insurance there is: vote on some pairs *before*
# you believe a verdict.
#
# **2. At the first step.** In three of the thirteen cases the very first step shows a number that a right program
# cannot produce. Which? Answer with a set of letters.

# %%
answer = None
exercises.at_the_first_step(answer)

# %% [markdown]
# **3. Equal curves.** Two cases have the same curves, number by number, and the same answers. Which two? (What differs
# is what is said about them.)

# %%
answer = None
exercises.equal_curves(answer)

# %% [markdown]
# **4. What helps?** All labels are swapped, everywhere. Which of these would have shown it before the run:
# `"accuracy"` of the reward model on held-out pairs, its validation `"loss"`, a second `"judge"` from the same file,
# or a few `"votes"` of your own on rows of the file?

# %%
answer = None
exercises.what_helps(answer)

# %%
finish()
