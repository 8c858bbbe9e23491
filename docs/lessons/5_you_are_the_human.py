# %% [markdown]
# # 5. You are the human
#
# **Can forty choices of one person change what a model does, and how many would it take to be sure that they did?**
#
# So far a script has been the human in "human feedback". Now it is you. A model has learned to summarize posts, in the
# sloppy way of its writers: often it leaves out *where* something happened. It gives you two summaries of each of
# forty posts, and you say which one you prefer. Your forty votes are all the preferences there are. A reward model
# learns from them, the model is tuned, and then you compare old and new *blind*, at a page that does not tell which is
# which.
#
# Set `WHO = "me"` in the next cell to vote yourself: twice forty questions, ten minutes, four keys. With `"script"` a
# script goes through the same page in your place, by the same HTTP interface. It has a taste of its own: it wants to
# know where it happened, and among equals it prefers the shorter summary.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from lesson import COLORS, SIZE, at, begin, claim, finish, predict
from scipy import stats

begin("5_you_are_the_human")

import small_world
from exercises import you_are_the_human as exercises

from preferent import files
from preferent.evaluation import statistics
from preferent.quickstart import true_preference

WHO = "script"  # or "me"

small_world.make(at(ci=3000, full=4000), 100, 1000, 260)
WRITER = {"dataset": "demonstrations.jsonl", "train_steps": at(ci=120, full=200), "learning_rate": 0.005}
WRITER |= {"warmup_steps": 20, "schedule": "linear", "validation_every": 1000}
small_world.stage("sft", small_world.recipe(sft=WRITER), Path("base"), model=Path("model"))
START = Path("base/model")

# %% [markdown]
# ## Forty votes
#
# `preferent label --prompts FILE --model MODEL` lets a model answer twice and serves the page. Pairs of equal answers
# are not asked: nobody can choose between them. Left and right are drawn anew for every question, from a secret, so
# that nobody can guess from the place which answer is which.
#
# How many of the forty votes do you expect to be ties?

# %%
ties_guess = predict("How many of the 40 votes will be ties?", 5)

# %%
# Run
VOTES = 40
words = small_world.sample(Path("votes"), 120, prompts=Path("prompt.jsonl"), model=START)
asked = exercises.ask(words, VOTES, WHO, Path("page.log"))
mine = files.read_jsonl(Path("votes/preferences.jsonl"))
ties = files.read_jsonl(Path("votes/ties.jsonl"))
print(f"{asked} questions: {len(mine)} preferences, {len(ties)} ties")
for row in mine[:3]:
    post = row["input_text"].split("\n")[0]
    chosen, rejected = row[f"candidate_{row['choice']}"], row[f"candidate_{1 - row['choice']}"]
    print(f"  {post}\n     chosen  {chosen}\n     not     {rejected}")
ties_guess.compare(len(ties), "votes", close=0.3)
assert asked == VOTES == len(mine) + len(ties)

# %% [markdown]
# ## A reward model from one person's taste
#
# The preferences are an ordinary file, and the recipe is an ordinary recipe. The test posts are new: no model has seen
# them, and nobody has voted on them.
#
# Your taste is not written anywhere, and the model cannot ask. What it has is a few dozen rows. Of the model's answers
# to new posts, what share says where it happened: before, and after?

# %%
after_guess = predict("What share of the tuned model's answers will name a place?", 0.6)

# %%
# Run
STEPS = at(ci=12, full=24)
SETTINGS = {
    "large_model_reference": str(START),
    "preference_dataset": "votes/preferences.jsonl",
    "reward_model_train_steps": at(ci=25, full=40),
    "reward": {"learning_rate": 0.001, "batch_size": 16, "warmup_steps": 5, "validation_every": 1000},
    "reinforcement_learning_train_steps": STEPS,
    "kl_coeff": 0.05,
    "ppo": {"batch_size": at(ci=32, full=64), "epochs": 2, "minibatches": 2, "learning_rate": 0.0005}
    | {"critic_learning_rate": 0.001, "warmup_steps": 2, "validation_every": STEPS // 3, "validation_prompts": 64},
    "infer": {"sampling_strategy": "temperature_sampling", "max_prompts": at(ci=80, full=200)},
    "compare": {"judge": "reward"},
}
recipe = small_world.recipe(**SETTINGS)
first = small_world.run(recipe, Path("round-1"))


def answers(run, model: str) -> list[str]:
    return [row["prediction"] for row in run.predictions(model)]


def where(run, model: str) -> float:
    """Return the share of a model's answers that name a place."""
    return float(np.mean([exercises.says_where(text) for text in answers(run, model)]))


before, after = where(first, "base"), where(first, "tuned")
print(f"answers that name a place: {before:.0%} before, {after:.0%} after")
for row, text in list(zip(first.predictions("base"), answers(first, "tuned"), strict=True))[:4]:
    print(f"  {row['inputs']['inputs_pretokenized'].split(chr(10))[0]}\n    {row['prediction']}  →  {text}")
after_guess.compare(after)

score, kl = (np.array([row[key] for row in first.metrics() if row["step"]]) for key in ("reward", "kl_loss"))
_, axes = plt.subplots()
axes.plot(kl, score, "o-", color=COLORS["blue"], markersize=3)
axes.set(xlabel="KL to the base, nats per answer", ylabel="reward, learned from your votes")
plt.show()

# %% [markdown]
# ## Better? Ask blind
#
# Now the comparison: old against new on new posts, you do not see which is which. Equal answers are ties and are not
# asked. The result is a win rate with its interval.
#
# Before you vote: how wide is the interval after forty votes? Say how many points it reaches to either side, as a
# share.

# %%
width_guess = predict("How far does the interval of 40 votes reach to either side?", 0.05)

# %%
# Run
exercises.ask([str(first.folder)], VOTES, WHO, Path("blind.log"))
small_world.run(recipe, first.folder)  # the same command again: only the comparison and the report are made anew
people = first.verdict()["judges"]["people"]
low, high = people["interval"]
verdict = "better" if low > 0.5 else "worse" if high < 0.5 else "inconclusive"
print(f"{people['n']} verdicts, {people['tie']} of them ties: tuned is preferred in {people['win_rate']:.0%}")
print(f"95 % interval {low:.0%} to {high:.0%}: {verdict}")
width_guess.compare((high - low) / 2)

# %% [markdown]
# *Inconclusive* is an answer. It does not mean that nothing has changed; it means that forty votes cannot tell. It is
# the honest end of many comparisons, and the only dishonest thing is to go on voting until the interval looks well.
#
# Here we can do what you cannot do with a person: ask the script about *all* test posts. And there is a ceiling: a
# tuned model that always says where, in as few words as possible, cannot win where the base already did.

# %%
worth = {"left": 1.0, "right": 0.0, "tie": 0.5}
everywhere = list(zip(answers(first, "tuned"), answers(first, "base"), strict=True))
outcomes = np.array([worth[exercises.prefer(tuned, base)] for tuned, base in everywhere])
posts = [row["inputs"]["inputs_pretokenized"] for row in first.predictions("base")]
all_posts = statistics.win_rate(outcomes, posts)
best = [" Anna fed a dog at the zoo."] * len(everywhere)
limit = float(np.mean([worth[exercises.prefer(text, base)] for text, (_, base) in zip(best, everywhere, strict=True)]))
low, high = all_posts.interval
print(
    f"the script on all {len(outcomes)} posts: {all_posts.win_rate:.0%} ({low:.0%} to {high:.0%}); ceiling {limit:.0%}"
)
gold = true_preference.verdict(first.predictions("base"), first.predictions("tuned"))
low, high = gold["interval"]
print(f"by the world's true preference: {gold['win_rate']:.0%} ({low:.0%} to {high:.0%})")
if SIZE == "full" and WHO == "script":
    assert after > before + 0.1 and all_posts.interval[0] > 0.5, "the votes changed the policy"
    assert all_posts.win_rate <= limit + 0.05

# %% [markdown]
# You got what you voted for, and only that: a reward model learns what your votes have in common. Nobody punished a
# *wrong* place, so nothing told the model to get it right. The last line is by the preference that this world was made
# with, which minds whether who, what and where are true.
#
# ## The next round
#
# The tuned model answers otherwise than the model that your votes were about. So people look at what it says *now*:
# `preferent label RUN --on train` asks about answers of base and tuned model to training prompts, and `preferent run …
# --with-labels RUN` learns from the old votes and the new ones. Votes on *test* prompts judge and never teach; votes
# on training prompts teach and never judge.
#
# (A script votes this time, whoever you are, so that the lesson ends today.)

# %%
round_guess = predict("What share of the second round's answers will name a place?", 0.8)

# %%
# Run
words = small_world.sample(first.folder / "labels/train", 120, run=first.folder)
exercises.ask(words, VOTES, "script", Path("second.log"))
second = small_world.run(recipe, Path("round-2"), earlier=first.folder)
shares = {"base": where(second, "base"), "round 1": where(second, "round-1"), "round 2": where(second, "tuned")}
rates = {}
for name, model in (("round 1", "round-1"), ("round 2", "tuned")):
    pairs = zip(answers(second, model), answers(second, "base"), strict=True)
    rates[name] = statistics.win_rate(np.array([worth[exercises.prefer(*both)] for both in pairs]), posts)
for name, share in shares.items():
    rate = rates.get(name)
    won = f"preferred to base in {rate.win_rate:.0%} ({rate.interval[0]:.0%} to {rate.interval[1]:.0%})" if rate else ""
    print(f"{name:7} {share:4.0%} name a place  {won}".rstrip())
round_guess.compare(shares["round 2"])
learned = files.read_json(second.folder / "data/counts.json")["preference"]["kept"]
print(f"round 2 learned from {learned} preferences; its report compares all rounds")
assert learned > len(mine)

# %% [markdown]
# ## How many votes to see 60 %?
#
# Suppose the tuned model really is preferred in 60 % of all pairs. You collect votes and look whether their
# interval excludes one half. With forty votes you will usually *not* see it. How many do you need to see it with a
# probability of 80 %?
#
# Say a number. Then we simulate: many people who vote, each vote a coin that falls on the right side with probability
# 0.6. Beside it stands the exact answer, a sum over the binomial distribution.

# %%
votes_guess = predict("How many votes until a true win rate of 60 % is seen with probability 80 %?", 100)

# %%
# Run
RATE, WANTED = 0.6, 0.8
sizes = np.arange(20, 301, 20)
exact = np.array([exercises.power(RATE, int(size)) for size in sizes])
TRIALS = 4000
draws = np.random.default_rng(0).binomial(sizes[:, None], RATE, (len(sizes), TRIALS))
for votes in (7, 40, 193):  # the rule of `sees` is the interval of the reports
    for won in range(votes + 1):
        low, high = statistics.wilson(won, votes)
        assert exercises.sees(won, votes) == (not low <= 0.5 <= high)

simulated = np.empty(len(sizes))
for place, size in enumerate(sizes):
    simulated[place] = exercises.sees(draws[place], int(size)).mean()
errors = np.sqrt(exact * (1 - exact) / TRIALS)
assert np.all(np.abs(simulated - exact) < 4 * errors + 1e-9), "simulation and sum disagree"

needed = 1 + max(votes for votes in range(20, 400) if exercises.power(RATE, votes) < WANTED)
votes_guess.compare(needed, "votes")
claim("probability of seeing it with 40 votes", exercises.power(RATE, 40), 0.2, 0.05)
low, high = statistics.wilson(20, 40)
claim("half the width of the interval of 40 votes", (high - low) / 2, 0.15, 0.01)
assert 180 < needed < 220
print(f"{needed} votes; with {VOTES} the probability is {exercises.power(RATE, VOTES):.0%}")

_, axes = plt.subplots()
axes.plot(sizes, exact, color=COLORS["blue"], label="exact")
axes.plot(sizes, simulated, "o", color=COLORS["orange"], markersize=4, label="simulated")
axes.axhline(WANTED, color=COLORS["grey"], linestyle=":")
axes.axvline(VOTES, color=COLORS["grey"], linestyle=":")
axes.set(xlabel="votes", ylabel="the interval excludes one half", ylim=(0, 1))
axes.legend()
plt.show()

# %% [markdown]
# Forty votes are plus or minus 15 points. A difference of ten points takes nearly two hundred. This is why a lesson, a
# paper or a product that shows "23 wins of 40" has shown nothing, and why judges that do not tire (reward
# models, language models) are used beside people, and are measured against them.
#
# How sure are you with the number of votes that you had? The curve says it for every true rate:

# %%
truths = np.linspace(0.3, 0.9, 25)
_, axes = plt.subplots()
for votes, colour in ((40, COLORS["orange"]), (needed, COLORS["blue"])):
    axes.plot(truths, [exercises.power(float(rate), votes) for rate in truths], color=colour, label=f"{votes} votes")
axes.axhline(0.05, color=COLORS["grey"], linestyle=":")
axes.set(xlabel="true win rate", ylabel="the interval excludes one half", ylim=(0, 1))
axes.legend()
plt.show()
false = exercises.power(0.5, needed)
print(f"where nothing has changed, {needed} votes see a difference with probability {false:.3f}")
assert false < 0.06 and stats.binom.pmf(np.arange(needed + 1), needed, 0.5).sum() > 0.999

# %% [markdown]
# ## Exercises
#
# **1. Clearer differences need fewer votes.** How many votes do you need to see a true win rate of 7 in 10 with a
# probability of 80 %? (`exercises.power(rate, votes)` is there.)

# %%
answer = None
exercises.votes_for(answer)

# %% [markdown]
# **2. Your verdict.** A colleague's model won 23 of 40 blind comparisons, without ties. Is it `"better"`, `"worse"`,
# or `"inconclusive"`?

# %%
answer = None
exercises.verdict(answer)

# %% [markdown]
# **3. Why two kinds of votes?** Votes on test prompts judge and must never teach, because…
#
# - `"a"`: the page asks about test prompts in another way;
# - `"b"`: a model that learned from them would be judged by what it already knows;
# - `"c"`: votes on test prompts are less reliable.

# %%
answer = None
exercises.fair(answer)

# %%
finish()
