# %% [markdown]
# # 4. Evaluation
#
# **The reward went up. Is the model better?**
#
# Not always, and the reward itself cannot tell. This lesson looks at what can: the curves of healthy and of sick
# runs, a win rate with its interval, two ways in which judges are biased, and the sickness that no curve of the
# reward shows: over-optimisation, in a world where the true preference is known, so that we can see who could have
# seen it.

# %%
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kitchen
import matplotlib.pyplot as plt
import numpy as np
import town
from exercises import evaluation as exercises
from lesson import at, begin, claim, finish, interval, predict, preferent
from scipy.optimize import minimize

from preferent import Run
from preferent.evaluation import statistics
from preferent.evaluation.statistics import length_control

begin("4_evaluation")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# %% [markdown]
# ## 1. Healthy and sick curves, side by side
#
# The guide of lesson 1, a small Llama that answers with walks through a town, is tuned three times by
# `preferent ppo`. Its reward is the true worth of where a walk ends, so nothing is wrong with the reward. One run is
# as in lesson 1; one has a learning rate 30 times as high; one has nearly no leash, β = 0.000001. What is possible is
# known: the dashed lines are the reward and the KL of the best policy at β = 0.5.

# %%
import torch

torch.set_num_threads(1)
town.write_model(Path("base"))
walks = town.every_walk()
Path("prompts.jsonl").write_text('{"input_text": "?"}\n')
Path("worth.json").write_text(json.dumps(dict(zip(walks.texts, town.GOLD[walks.ends].tolist(), strict=True))))
Path("worth.py").write_text('''
import json

WORTH = json.load(open("worth.json"))

def worth(prompts, answers):
    """What people think of where a walk ends."""
    return [WORTH.get(answer, -10.0) for answer in answers]
''')
Path("recipe.yaml").write_text(f"""
large_model_reference: base
prompt_sequence_length: 4
target_sequence_length: 4
precision: fp32
threads: 1
checkpoint_every: 1000
kl_coeff: 0.5
reinforcement_learning_train_steps: {at(ci=15, full=40)}
reward: {{sources: "worth:worth", missing_eos_score: null, normalize: none}}
ppo:
  {{batch_size: 256, minibatches: 1, epochs: 4, learning_rate: 3.0e-3, critic_learning_rate: 3.0e-3,
   validation_every: 1000}}
""")


def tune(name, *settings):
    chosen = [word for setting in settings for word in ("--set", setting)]
    data = ["--in=model=base", "--in=train=prompts.jsonl", "--in=validation=prompts.jsonl"]
    preferent("ppo", "--recipe", "recipe.yaml", *data, *chosen, "--out", f"{name}/policy")
    Path(name, "recipe.yaml").write_text(Path("recipe.yaml").read_text())
    lines = [json.loads(line) for line in Path(name, "policy/metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "reward" in line]


best, _ = town.optimum(town.GOLD, 0.5)
best_reward, best_kl = town.measure(best, town.GOLD)
habit = np.tile(town.HABIT, (town.CHOICES, 1))

# %%
hot_kl = predict("Learning rate × 30: where does the KL end, in nats per walk? (the optimum has 2.4)", 3)
loose_reward = predict("No leash: what share of the best reward of any walk does it end with, in per cent?", 50)

# %%
# Run: three trainings, two side by side.
kinds = {
    "healthy": (),
    "learning rate × 30": ("ppo.learning_rate=0.09",),
    "no leash": ("kl_coeff=0.000001",),
}
with ThreadPoolExecutor(2) as pool:
    curves = dict(zip(kinds, pool.map(lambda i: tune(f"run-{i}", *list(kinds.values())[i]), range(3)), strict=True))
last = {name: {key: np.mean([line[key] for line in lines[-5:]]) for key in lines[0]} for name, lines in curves.items()}
hot_kl.compare(last["learning rate × 30"]["objective/kl"], "nats")
loose_reward.compare(100 * last["no leash"]["reward"] / town.GOLD.max(), "per cent")

figures = ["reward", "objective/kl", "objective/entropy", "policy/clipfrac"]
fig, axes = plt.subplots(1, 4, figsize=(11, 2.9))
for axis, figure in zip(axes, figures, strict=True):
    for name, lines in curves.items():
        axis.plot([line["step"] for line in lines], [line[figure] for line in lines], label=name)
    axis.set(title=figure, xlabel="step")
axes[0].axhline(best_reward, color="#333", linestyle="--", linewidth=1)
axes[1].axhline(best_kl, color="#333", linestyle="--", linewidth=1)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=3)
plt.show()
for number, name in enumerate(kinds):
    names = [finding.name for finding in Run(f"run-{number}").doctor() if finding.severity == "sick"]
    print(
        f"{name:20} KL {last[name]['objective/kl']:.2f}, entropy {last[name]['objective/entropy']:.2f}; sick:", *names
    )
claim("KL of the healthy run at the end, less that of the optimum", last["healthy"]["objective/kl"] - best_kl, 0, 0.5)
claim("entropy of the run without a leash", last["no leash"]["objective/entropy"], 0, within=0.1)
claim("reward of the hot run, less the best", last["learning rate × 30"]["reward"] - best_reward, -1.6, within=1)

# %% [markdown]
# - **Healthy**: reward and KL rise and *level off*, around what is possible; entropy falls and stays above 0; a small
#   share of tokens is clipped, to the end.
# - **Learning rate × 30**: within a step or two the entropy is 0: the policy says one thing and never tries another, so
#   nothing is learned any more. KL jumps at once, and the reward stays where it happened to land.
# - **No leash**: the reward is the best of the three! With a *true* reward nothing is lost but variety: every walk
#   now ends at the bakery. Section 4 has a reward that is not true.
#
# `preferent doctor` names the sick runs from such curves alone. Lesson 6 has twelve sicknesses.
#
# ## 2. A win rate is a number with an interval
#
# Let people choose between a walk of the guide before and after tuning. In the town the true win rate is a sum over all
# pairs of walks, so that every measurement can be held against it.


# %%
def distribution(log_policy):
    """The probability of each of the 31 walks."""
    return np.exp(np.where(walks.mask, log_policy[walks.corners, walks.moves], 0).sum(-1))


before, after = distribution(habit), distribution(best)
taste = town.GOLD[walks.ends]


def true_win_rate(a, b, taste=taste):
    """The share in which an answer of `a` is preferred to one of `b`, over all pairs of walks."""
    return float(a @ sigmoid(taste[:, None] - taste) @ b)


def votes(a, b, count, draw, taste=taste, first=0.0):
    """The walks of both sides, and who won each vote; `first` is a liking for a's place, in log-odds."""
    one, other = draw.choice(31, count, p=a / a.sum()), draw.choice(31, count, p=b / b.sum())
    return one, other, (draw.random(count) < sigmoid(taste[one] - taste[other] + first)).astype(float)


# %%
half_width = predict("40 votes: how many points wide is the interval to either side?", 5)
covered = predict("Of 100 such intervals, how many contain the true win rate?", 95)

# %%
# Run: one vote of 40, then many votes of 40 and of 400.
rate = true_win_rate(after, before)
draw = np.random.default_rng(0)
once = statistics.win_rate(votes(after, before, 40, draw)[2], np.arange(40))
low, high = once.interval
print(f"true {rate:.3f}; 40 votes say {once.win_rate:.3f}, between {low:.3f} and {high:.3f}")
half_width.compare(50 * (high - low), "points")

fig, axis = plt.subplots(figsize=(8, 2.8))
repeats = at(ci=300, full=1000)
share = {}
for place, count in enumerate((40, 400)):
    found = [statistics.win_rate(votes(after, before, count, draw)[2], np.arange(count)) for _ in range(repeats)]
    share[count] = np.mean([one.interval[0] <= rate <= one.interval[1] for one in found])
    for row, one in enumerate(found[:40]):
        missed = not one.interval[0] <= rate <= one.interval[1]
        axis.plot([row + 45 * place] * 2, one.interval, color="#c23b3b" if missed else "#1f6fb4")
axis.axhline(rate, color="#333", linewidth=1)
axis.axhline(0.5, color="#7a7a7a", linestyle="--", linewidth=1)
axis.set(
    xticks=[20, 65], xticklabels=["40 votes each", "400 votes each"], ylabel="win rate", title="40 experiments each"
)
plt.show()
covered.compare(100 * share[40], "of 100")
claim("share of intervals from 40 votes that hold, per cent", 100 * share[40], 95, within=3)
claim("share of intervals from 400 votes that hold, per cent", 100 * share[400], 95, within=3)
even = statistics.win_rate([1.0] * 20 + [0.0] * 20, np.arange(40)).interval
claim("points to either side of an even vote of 40", 50 * (even[1] - even[0]), 15, within=1)

# %% [markdown]
# An interval holds in about 95 % of the experiments, whether from 40 votes or from 400; that is all that it promises.
# What votes buy is width: an even vote of 40 is ± 15 points, so that a model which truly wins 60 % is mostly
# *inconclusive*. Ten times the votes make it about three times as narrow.
#
# ## 3. Two biases of judges
#
# **Position.** A judge, person or model, that likes what it reads first adds a constant to the log-odds of that place.
# Let it be 0.8, and let the two models be *equal*: both are the tuned guide.

# %%
first_place = predict("Equal models, one always shown first, a liking of 0.8: what win rate, in per cent?", 55)

# %%
# Run: exactly, and by 2,000 votes in one order and in both.
drawn = np.random.default_rng(1)
pair = after[:, None] * after
exact = float((pair * sigmoid(taste[:, None] - taste + 0.8)).sum())
swapped = float((pair * sigmoid(taste[:, None] - taste - 0.8)).sum())
first_place.compare(100 * exact, "per cent")
one, other, won = votes(after, after, 2000, drawn, first=0.8)
again = (drawn.random(2000) < sigmoid(taste[one] - taste[other] - 0.8)).astype(float)
single = statistics.win_rate(won, np.arange(2000))
double = statistics.win_rate(np.concatenate([won, again]), np.tile(np.arange(2000), 2))
print("one order:  {:.3f} [{:.3f}, {:.3f}]".format(single.win_rate, *single.interval))
print("both orders: {:.3f} [{:.3f}, {:.3f}]".format(double.win_rate, *double.interval))
claim("win rate of equal models in one order, per cent", 100 * exact, 65, within=1)
assert abs((exact + swapped) / 2 - 0.5) < 1e-12 and single.interval[0] > 0.5
assert double.interval[0] < 0.5 < double.interval[1]

# %% [markdown]
# In one order the model shown first "wins" 65 % against itself, with an interval that excludes one half: a narrow
# interval around a wrong number. In both orders the bias cancels exactly, whatever its size. The two verdicts on one
# prompt are *one* observation; `preferent` nets them, and so must you.
#
# **Length.** Now a judge adds 0.6 to the log-odds for every move that an answer is longer, and a third guide, the
# *rambler*, is tuned for nothing but long walks.

# %%
by_length = np.array([len(text) for text in walks.texts], dtype=float)
tilt = before * np.exp(0.8 * by_length)
rambler = tilt / tilt.sum()
likes_length = taste + 0.6 * by_length
people = true_win_rate(rambler, before)
print(f"mean moves: {before @ by_length:.2f} before, {rambler @ by_length:.2f} of the rambler")
claim("people prefer the rambler, per cent", 100 * people, 54, within=1)

# %%
rambles = predict("People prefer the rambler in 54 %. What does the judge that likes length say, in per cent?", 55)

# %%
# Run: the judge exactly, and 2,000 of its verdicts with length taken out again.
biased = true_win_rate(rambler, before, likes_length)
rambles.compare(100 * biased, "per cent")
one, other, won = votes(rambler, before, 2000, np.random.default_rng(2), likes_length)
controlled = length_control.controlled(won, by_length[one], by_length[other], np.arange(2000))
low, high = controlled.interval
print(
    f"raw {controlled.raw:.3f}; at equal length {controlled.win_rate:.3f} [{low:.3f}, {high:.3f}]; people: {people:.3f}"
)
claim("what the judge that likes length says, per cent", 100 * biased, 65, within=1)
assert low < people < high

# %% [markdown]
# The judge says 65 % where people say 54 %. A regression on the difference of lengths asks what the judge would say
# of answers *equally long*; its interval contains what people say. Look at the lengths of both sides first: a rise of
# length beside a rise of the win rate is the commonest way to be fooled. A person may have this bias too, and then
# length is part of what people like, and no bias.

# %% [markdown]
# ## 4. Over-optimisation: where is the peak, and who could have seen it?
#
# A kitchen this time. A soup is six portions of twelve ingredients. What people think of it is a formula: every
# ingredient has its quality, some go together, and *each further portion of what is in already spoils it*. A cook
# reaches for everything equally often, so that few soups have much of one thing, and few comparisons show what that
# does.
#
# The reward model adds up one score for each ingredient. It learns from 200 comparisons, and for such a reward the best
# policy on a leash is again known. So is the true worth of its soups, in closed form. We loosen the leash step by step
# and watch both: the *proxy*, which is what the policy is tuned for, and *gold*, which is what people think.


# %%
def fit(chosen, rejected):
    """Scores of the ingredients by Bradley and Terry's loss, with a little decay; their mean is 0."""
    portions = (chosen - rejected).astype(float)

    def loss(scores):
        margin = portions @ scores
        slope = -(portions.T @ sigmoid(-margin)) / len(margin) + 0.004 * scores
        return np.logaddexp(0, -margin).mean() + 0.002 * scores @ scores, slope

    scores = minimize(loss, np.zeros(portions.shape[1]), jac=True).x
    return scores - scores.mean()


betas = np.geomspace(0.05, 20, 80)[::-1]
base_worth = kitchen.expected_worth(kitchen.HABIT)


def loosened(scores, judge):
    """KL, proxy, gold and an independent judge's opinion of the best policy at every beta, all above the cook's."""
    policies = [kitchen.tilted(scores, beta) for beta in betas]
    gold = np.array([kitchen.expected_worth(shares) for shares in policies]) - base_worth
    by_proxy, by_judge = (np.array([kitchen.PORTIONS * shares @ s for shares in policies]) for s in (scores, judge))
    return np.array([kitchen.kl(shares) for shares in policies]), by_proxy, gold, by_judge


simulated = kitchen.worth(kitchen.soups(kitchen.HABIT, 100_000, np.random.default_rng(0)))
assert abs(simulated.mean() - base_worth) < 0.02  # the closed form agrees with cooking

# %%
peak_at = predict("At how many nats of KL is gold highest?", 6)
in_the_end = predict(
    "With the leash gone, how much better than the cook's are the soups? (log-odds; the proxy says + 3.4)", 1
)

# %%
# Run: ten reward models from 200 comparisons each, each with a judge from 200 others, and the leash loosened.
runs = []
for seed in range(10):
    draw = np.random.default_rng(seed)
    scores, judge = (fit(*kitchen.comparisons(200, draw)) for _ in range(2))
    runs.append((scores, judge, *loosened(scores, judge)))
peaks = [run[2][run[4].argmax()] for run in runs]
peak, end = interval(peaks), interval([run[4][-1] for run in runs])
print(f"gold is highest at KL {peak}, at {interval([run[4].max() for run in runs])}; in the end it is {end}")
peak_at.compare(peak.mean, "nats")
in_the_end.compare(end.mean, "log-odds")

fig, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharex=True)
for axis, column, title in zip(
    axes, (3, 4, 5), ("proxy: what is tuned for", "gold: what people think", "the judge: 200 others"), strict=True
):
    for run in runs:
        axis.plot(run[2], run[column], color="#1f6fb4", alpha=0.5)
    axis.axvline(peak.mean, color="#c23b3b", linestyle="--", linewidth=1)
    axis.axhline(0, color="#333", linewidth=1)
    axis.set(title=title, xlabel="KL, nats per soup")
plt.show()
held_out = kitchen.comparisons(20_000, np.random.default_rng(99))
ahead = kitchen.worth(held_out[0]) - kitchen.worth(held_out[1])
ceiling = sigmoid(np.abs(ahead)).mean()
accuracy = interval([((held_out[0] - held_out[1]) @ run[0] > 0).mean() for run in runs])
print(f"accuracy on new comparisons {accuracy}; the ceiling is {ceiling:.3f}")
claim("nats at the peak", peak.mean, 2.3, within=0.5)
claim("gold in the end", end.mean, -0.8, within=0.6)
claim("proxy in the end", np.mean([run[3][-1] for run in runs]), 3.4, within=0.5)
claim("accuracy, per cent", 100 * accuracy.mean, 66, within=2)
claim("its ceiling, per cent", 100 * ceiling, 75, within=1)
for run in runs:
    assert (np.diff(run[3]) > -1e-9).all()  # the proxy never falls
assert all(run[5][-1] > run[5][run[4].argmax()] for run in runs)  # nor does the judge, from gold's peak to the end

# %% [markdown]
# The proxy rises to the end. Gold rises, *turns* at about 2.3 nats, and ends 0.8 below the soups of a cook who was
# never tuned. The cause is not bad luck: a score for each ingredient cannot say "not again", and no number of
# comparisons would teach it. What could have told us?
#
# - The reward: no, it never falls. Its accuracy, 66 % where 75 % are possible, is a hint that it lacks something, and
#   no more: it was the same at the peak.
# - An *independent judge*, trained on 200 other comparisons: in all ten runs it likes the last soups better than
#   those at the peak. Independent data catches what a reward model got wrong by chance, not what both are blind to.
# - People, asked again about the soups of the *tuned* policy. Let 200 votes be spent at each of six KLs.

# %%
turn_seen = predict("At which of KL 1, 2, 3, 5, 8 and 12 do 200 votes first show that gold is past its peak?", 3)

# %%
# Run: 200 votes against the cook at each KL, for the first reward model, and a count of portions.
scores, _, path, *_ = runs[0]
draw = np.random.default_rng(7)
asked, table = (1, 2, 3, 5, 8, 12), []
for nats in asked:
    shares = kitchen.tilted(scores, betas[np.abs(path - nats).argmin()])
    tuned, cook = kitchen.soups(shares, 200, draw), kitchen.soups(kitchen.HABIT, 200, draw)
    won = draw.random(200) < sigmoid(kitchen.worth(tuned) - kitchen.worth(cook))
    verdict = statistics.win_rate(won.astype(float), np.arange(200))
    table.append((verdict.win_rate, *verdict.interval, (kitchen.PORTIONS - (tuned > 0).sum(-1)).mean()))
    print(
        "KL {:2}: preferred to the cook's in {:.0%} [{:.0%}, {:.0%}]; repeated portions {:.1f}".format(nats, *table[-1])
    )
rates = np.array(table)
top = rates[:, 0].argmax()
past = next((nats for nats, row in zip(asked, rates, strict=True) if nats > asked[top] and row[2] < rates[top, 0]), 12)
turn_seen.compare(past, "nats")

fig, (left, right) = plt.subplots(1, 2)
errors = np.abs(rates[:, 1:3].T - rates[:, 0])
left.errorbar(asked, rates[:, 0], errors, marker="o", capsize=3)
left.axhline(0.5, color="#7a7a7a", linestyle="--")
left.set(xlabel="KL, nats per soup", ylabel="preferred to the cook's", title="200 votes at each, 95 %")
right.plot(asked, rates[:, 3], "o-", color="#d9731a")
right.set(xlabel="KL, nats per soup", title="repeated portions of six")
plt.show()
assert rates[-1, 2] < 0.5 < rates[:, 1].max()
claim("repeated portions at KL 1", rates[0, 3], 1.5, within=0.4)
claim("repeated portions at KL 12", rates[-1, 3], 4.5, within=0.6)

# %% [markdown]
# People see it, with 200 votes and an interval: at a small KL the tuned soups win, at the end they lose. So does
# anybody who *reads*: at KL 1 a soup has about 1.5 repeated portions, at KL 12 about 4.5. And the KL itself
# is a warning that costs nothing. That is why `preferent` draws it beside the reward, stops at a budget
# (`ppo.kl_budget`), judges with a model that was not optimised, shows answers side by side, and lets people vote
# blind. The same experiment with language models instead of closed forms, and how well best of n, ensembles and the
# leash help, is in [Over-optimisation](../overoptimization.md).
#
# ## Exercises
#
# **1.** A judge takes the first place in 80 % of the pairs of *equal* answers. How large is its liking for it, in
# log-odds?

# %%
liking = None
exercises.position(liking)

# %% [markdown]
# **2.** Write `win_rate(wins, ties, losses)`, the share that everybody means. Hand over the function.

# %%
my_win_rate = None
exercises.win_rate(my_win_rate)

# %% [markdown]
# **3.** With the leash gone and a reward that adds up scores of ingredients, what is the KL of the best policy to the
# cook, in nats per soup? (A formula gives it: six portions, twelve ingredients, all equally frequent.)

# %%
far = None
exercises.without_a_leash(far)

# %%
finish()
