# %% [markdown]
# # 1. How RLHF works
#
# **How can a model learn what people like, if all they ever say is "rather this one than that one"?**
#
# Reinforcement learning from human feedback answers in three steps: a *reward model* turns comparisons into a score,
# *reinforcement learning* moves the model towards high scores, and a *leash* keeps it near the model that it was. Here
# all three are done twice: in plain torch on a world so small that the best possible answer can be computed, and with
# `preferent` on a language model that lives in the same world. Both must give the same numbers.
#
# Before each run you say what will come out. Write your number into the cell; it is compared with what was measured.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import town
from exercises import how_rlhf_works as exercises
from lesson import at, begin, claim, finish, interval, predict, preferent
from safetensors.torch import load_file

begin("1_how_rlhf_works")
torch.set_default_dtype(torch.float64)
SEEDS = range(5)

# %% [markdown]
# ## The world: a town of fifteen corners
#
# A guide is asked for a walk and answers with moves: `e` (east), `n` (north), or the end. A walk has at most four
# moves, so there are 31 walks, and every one can be written down. The *policy* is the guide's habit: the probability
# of each move at each corner. In the picture a line is as wide as the move is frequent, and a disc as large as the
# share of walks that end there. The colour is what people think of the place; the guide does not know it.

# %%
walks = town.every_walk()
corners, moves, mask = (torch.as_tensor(array) for array in (walks.corners, walks.moves, walks.mask))
ends = torch.as_tensor(walks.ends)
gold = torch.tensor(town.GOLD)
habit = torch.tensor(np.tile(town.HABIT, (town.CHOICES, 1)))  # log-probabilities [corner, move]


def log_probs(log_policy):
    """The log-probability of each of the 31 walks: a sum over its moves."""
    return torch.where(mask, log_policy[corners, moves], 0).sum(-1)


def expected(log_policy, rewards):
    """What a policy earns, and its KL to the habit in nats per walk: sums over all walks."""
    p = log_probs(log_policy).exp()
    return float(p @ rewards[ends]), float(p @ (log_probs(log_policy) - log_probs(habit)))


fig, axis = plt.subplots(figsize=(4.2, 3.8))
town.draw(axis, habit, "the guide before tuning")
assert len(walks.texts) == 31 and torch.allclose(log_probs(habit).exp().sum(), torch.tensor(1.0))
print(f"expected worth of a walk: {expected(habit, gold)[0]:.3f}")

# %% [markdown]
# ## Step 1: a reward model from comparisons
#
# A person sees two walks and picks one. Bradley and Terry's model says how: the probability that walk *a* is preferred
# to *b* is σ(r_a − r_b). So the reward model is a table of 15 scores, fitted by making what people chose likely:
# the loss of a pair is −log σ(r_chosen − r_rejected).
#
# People are not of one mind: with a difference of 1 the better walk is chosen in only 73 % of the pairs. So even
# somebody who knew the true worth of every place could not foresee every choice. That is the *ceiling*.


# %%
def choices(count, seed):
    """Pairs of different walks of the guide, as a person ordered them: the chosen and the rejected, [count] each."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.multinomial(log_probs(habit).exp(), 4 * count, True, generator=generator).view(2, -1)
    both = both[:, both[0] != both[1]][:, :count]
    prefers_first = torch.sigmoid(gold[ends[both[0]]] - gold[ends[both[1]]])
    first = torch.rand(count, generator=generator) < prefers_first
    return torch.where(first, both[0], both[1]), torch.where(first, both[1], both[0])


def pair_loss(scores, chosen, rejected):
    """-log sigma(r_chosen - r_rejected), the mean over pairs; `scores` are of walks [31]."""
    return -torch.nn.functional.logsigmoid(scores[chosen] - scores[rejected]).mean()


def centred(scores):
    """Scores whose mean over the guide's walks is 0: a constant changes no comparison."""
    return scores - log_probs(habit).exp() @ scores[ends]


def fit(chosen, rejected):
    """Scores [corner] of the smallest loss; a little decay keeps corners that were hardly seen near 0."""
    scores = torch.zeros(len(gold), requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = pair_loss(scores[ends], chosen, rejected) + 1e-4 * scores.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return centred(scores.detach())


def agreement(scores):
    """The share of choices that scores of walks [31] foresee, exactly: a sum over all pairs. A tie counts half."""
    p = log_probs(habit).exp()
    pairs = p[:, None] * p * (1 - torch.eye(len(p)))
    difference, true = scores[:, None] - scores, gold[ends][:, None] - gold[ends]
    foreseen = torch.where(difference == 0, 0.5, torch.sigmoid(true * difference.sign()))
    return float((pairs * foreseen).sum() / pairs.sum())


assert abs(float(torch.sigmoid(torch.tensor(1.0))) - 0.73) < 0.005

# %%
foresees = predict("Of 100 new choices, how many does a reward model foresee that has seen 3,000?", 90)

# %%
# Run: reward models from 30 to 3,000 choices, five of each size.
counts = (30, 100, 300, 1000, 3000)
pairs = [choices(counts[-1], seed) for seed in SEEDS]
scores = [fit(*some) for some in pairs]
ceiling = agreement(gold[ends])
curve = [interval([agreement(fit(c[:count], r[:count])[ends]) for c, r in pairs]) for count in counts]
for count, learned in zip(counts, curve, strict=True):
    print(f"{count:5} choices: foreseen {learned} over 5 seeds; the ceiling is {ceiling:.3f}")
    assert learned.mean <= ceiling
foresees.compare(100 * curve[-1].mean, "of 100")

fig, (left, right) = plt.subplots(1, 2)
left.axhline(ceiling, color="#7a7a7a", label="ceiling")
spread = [[i.mean - i.low for i in curve], [i.high - i.mean for i in curve]]
left.errorbar(counts, [i.mean for i in curve], spread, marker="o", capsize=3, label="reward models, 95 %")
left.set(xscale="log", xlabel="choices", ylabel="choices foreseen", title="more choices, up to a ceiling")
left.legend(loc="lower right")
for some in scores:
    right.plot(centred(gold), some, "o", color="#1f6fb4", alpha=0.5)
right.axline((0, 0), slope=1, color="#7a7a7a")
right.set(xlabel="true worth of a corner", ylabel="learned score", title="15 corners, 3,000 choices")
claim("choices that can be foreseen at all, per cent", 100 * ceiling, 77, within=0.5)
claim("foreseen after 3,000 choices, per cent", 100 * curve[-1].mean, 77, within=0.5)
claim("foreseen after 30 choices, per cent", 100 * curve[0].mean, 66, within=3)

# %% [markdown]
# The reward models foresee 77 % of new choices, and nobody can foresee more: the ceiling is 77 % too. *An accuracy
# means nothing without its ceiling.* After 30 choices it is about 66 %, and ten times as many already give nearly all
# that can be had.
#
# From here on the score of the first reward model is what the policy is tuned for.
#
# ## Step 2: what is the best policy on a leash?
#
# A policy that only wants reward would always walk to the one best place. The leash charges it for leaving its habit:
# it maximises E[r] − β KL, where KL is the expected log-ratio log π − log π_ref of a walk. The best policy is known in
# closed form: π\*(y) ∝ π_ref(y) exp(r(y)/β), and it earns β log Σ_y π_ref(y) exp(r(y)/β). Corner by corner it is found
# backwards, from the last moves to the first. With β large nothing pays; with β near 0 only the best place does.

# %%
reward = scores[0]


def optimum(rewards, beta):
    """The best policy, log-probabilities [corner, move], and the value of each corner."""
    value, log_policy = rewards.clone(), torch.zeros_like(habit)
    for corner in reversed(range(town.CHOICES)):
        east, north, _ = town.NEXT[corner]
        after = torch.stack([value[east], value[north], rewards[corner]])
        value[corner] = beta * torch.logsumexp(habit[corner] + after / beta, 0)
        log_policy[corner] = habit[corner] + (after - value[corner]) / beta
    return log_policy, value


for beta in (2.0, 0.5, 0.05):  # backwards through the corners, and by the sum over all walks: the same number
    best, value = optimum(reward, beta)
    earned, kl = expected(best, reward)
    in_closed_form = beta * torch.logsumexp(log_probs(habit) + reward[ends] / beta, 0)
    assert abs(value[0] - in_closed_form) < 1e-12 and abs(earned - beta * kl - value[0]) < 1e-12

# %%
short_leash = predict("β = 0.5: how far from its habit does the best policy go, in nats per walk?", 3.0)
long_leash = predict("And with β = 0.05, a leash ten times as loose?", 30.0)

# %%
# Run: the best policy at every beta, and two of them drawn.
betas = np.geomspace(0.03, 5, 60)
frontier = np.array([expected(optimum(reward, beta)[0], reward) for beta in betas])
short_leash.compare(expected(optimum(reward, 0.5)[0], reward)[1], "nats")
long_leash.compare(expected(optimum(reward, 0.05)[0], reward)[1], "nats")

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6))
left.plot(frontier[:, 1], frontier[:, 0])
for beta in (2, 0.5, 0.05):
    earned, kl = expected(optimum(reward, beta)[0], reward)
    left.plot(kl, earned, "o", color="#d9731a")
    left.annotate(f"β = {beta}", (kl, earned), xytext=(-12, -16), textcoords="offset points")
left.set(xlabel="KL, nats per walk", ylabel="reward", title="the best that any policy can do", xlim=(-0.3, 6))
town.draw(middle, optimum(reward, 0.5)[0], "best, β = 0.5")
town.draw(right, optimum(reward, 0.05)[0], "best, β = 0.05")
bakery = town.PLACE[0, 3]
surprise = -float(torch.logsumexp(log_probs(habit)[ends == bakery], 0))
claim("KL at beta 0.05", expected(optimum(reward, 0.05)[0], reward)[1], surprise, within=0.05)

# %% [markdown]
# The leash is not proportional. Near β = 0.5 the guide still walks as it did and merely turns north more often; at
# β = 0.05 it goes to the bakery and nowhere else, and then no leash, however loose, moves it further: the KL of "always
# the bakery" is −log of how often the habit went there.
#
# ## Step 3: PPO finds it without being told
#
# A language model has too many answers for sums. PPO *samples* some, scores them, and makes the moves that turned out
# better than expected a little more likely. These are its parts, and there are no others:
#
# - **rewards**: the score at the last move, and at each move −β (log π − log π_ref): the leash;
# - a **critic**, here a table, that says what is expected at each corner;
# - **advantages** by GAE: what came after a move, less what was expected, with λ between "only the next step" (0) and
#   "all that came" (1);
# - the **clipped** loss: a move's ratio π/π_old brings nothing beyond 1 ± 0.2.


# %%
def shaped_rewards(score, log_ratio, mask, beta):
    rewards = torch.where(mask, -beta * log_ratio, 0)
    rewards[torch.arange(len(mask)), mask.sum(-1) - 1] += score
    return rewards


def gae(rewards, values, mask, gamma, lam):
    """Advantages and returns [B, A], from the last move back to the first."""
    values, advantages = torch.where(mask, values, 0), torch.zeros_like(values)
    following = next_value = torch.zeros(len(mask), dtype=values.dtype)
    for t in reversed(range(mask.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(mask[:, t], delta + gamma * lam * following, 0)
        advantages[:, t], next_value = following, values[:, t]
    return advantages, advantages + values


def whiten(x, mask):
    return torch.where(mask, (x - x[mask].mean()) / (x[mask].var(unbiased=False) + 1e-8).sqrt(), 0)


def policy_loss(new, old, advantages, clip):
    ratio = (new - old).exp()
    return -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).sum()


def value_loss(values, old, returns, clip):
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2).sum()


def ppo(rewards, beta, seed, steps, batch=512, clip=0.2, lam=0.95):
    """Tune a table of logits; returns the policy, the critic, and (reward, KL) after every step."""
    generator = torch.Generator().manual_seed(seed)
    logits, critic = habit.clone().requires_grad_(), torch.zeros(town.CHOICES, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [logits], "lr": 0.05}, {"params": [critic], "lr": 0.1}])
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    path = [expected(logits.log_softmax(-1).detach(), rewards)]
    for _ in range(steps):
        with torch.no_grad():  # sample, score, and say what was better than expected
            log_policy = logits.log_softmax(-1)
            walk = torch.multinomial(log_probs(log_policy).exp(), batch, True, generator=generator)
            where, what, keep = corners[walk], moves[walk], mask[walk]
            old, old_values = log_policy[where, what], critic[where].clone()
            shaped = shaped_rewards(rewards[ends[walk]], old - habit[where, what], keep, beta)
            advantages, returns = gae(shaped, old_values, keep, 1.0, lam)
            advantages = whiten(advantages, keep)
        for _ in range(4):  # learn from it, four times
            new, values = logits.log_softmax(-1)[where, what], critic[where]
            loss = policy_loss(new[keep], old[keep], advantages[keep], clip)
            loss = loss + value_loss(values[keep], old_values[keep], returns[keep], 0.2)
            optimizer.zero_grad()
            (loss / keep.sum()).backward()
            optimizer.step()
        decay.step()
        path.append(expected(logits.log_softmax(-1).detach(), rewards))
    return logits.log_softmax(-1).detach(), critic.detach(), np.array(path)


def gap(log_policy, rewards, beta):
    """The share of the possible gain that is missing: 0 at the optimum, 1 before tuning."""
    best = float(optimum(rewards, beta)[1][0])
    earned, kl = expected(log_policy, rewards)
    return (best - (earned - beta * kl)) / (best - expected(habit, rewards)[0])


# %%
missing = predict("β = 0.5, 60 steps of 512 walks: how many per cent of the possible gain are missing?", 10)

# %%
# Run: PPO on five seeds.
runs = [ppo(reward, 0.5, seed, steps=at(ci=40, full=60)) for seed in SEEDS]
gaps = interval([100 * gap(log_policy, reward, 0.5) for log_policy, *_ in runs])
print(f"missing, per cent: {gaps} over 5 seeds")
missing.compare(gaps.mean, "per cent")
assert gaps.mean >= 0
claim("per cent of the gain that PPO misses", gaps.mean, 0, within=0.01)

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6))
left.plot(frontier[:, 1], frontier[:, 0], color="#7a7a7a", label="the best at each KL")
for *_, path in runs:
    left.plot(path[:, 1], path[:, 0], color="#1f6fb4", alpha=0.6)
earned, kl = expected(optimum(reward, 0.5)[0], reward)
left.plot(kl, earned, "o", color="#d9731a", label="optimum, β = 0.5")
left.set(
    xlabel="KL, nats per walk",
    ylabel="reward",
    title="five runs of PPO",
    xlim=(-0.1, 2 * kl),
    ylim=(-0.1, 1.5 * earned),
)
left.legend(loc="lower right")
town.draw(middle, runs[0][0], "what PPO learned")
town.draw(right, optimum(reward, 0.5)[0], "the optimum")

# %% [markdown]
# All five runs climb near the frontier and stop where the optimum is: less than 0.01 % of the possible gain is
# missing. The noise of sampling does not keep them away, because it dies out there: at the optimum a walk's score
# less its leash is the same number for *every* walk, so nothing is better than expected and nothing is learned. That
# number is V\* of the station, and the critic found it too.

# %%
table = [["corner", "critic", "V*"]]
exact = optimum(reward, 0.5)[1]
for corner in range(4):
    table.append([str(town.CORNERS[corner]), f"{float(runs[0][1][corner]):.3f}", f"{float(exact[corner]):.3f}"])
print("\n".join("{:>8} {:>8} {:>8}".format(*row) for row in table))
claim("the critic at the station, less V*", float(runs[0][1][0] - exact[0]), 0.0, within=0.1)

# %% [markdown]
# ## The same numbers from `preferent`
#
# What is above is a toy only in its size. These are the functions that `preferent` trains language models with, on a
# batch of walks of the policy that was just tuned. They agree to the last digits.

# %%
from preferent.models import vocabulary
from preferent.training import losses

generator = torch.Generator().manual_seed(9)
walk = torch.multinomial(log_probs(runs[0][0]).exp(), 200, True, generator=generator)
where, what, keep = corners[walk], moves[walk], mask[walk]
old, reference = runs[0][0][where, what], habit[where, what]
values, new = runs[0][1][where], old + 0.3 * torch.randn(old.shape, generator=generator)
mine = shaped_rewards(reward[ends[walk]], old - reference, keep, 0.5)
advantages, returns = gae(mine, values, keep, 1.0, 0.95)
white = whiten(advantages, keep)
moved = values + 0.3 * torch.randn(values.shape, generator=generator)
chosen, rejected = pairs[0]
of_policy, of_critic = (new[keep], old[keep], white[keep]), (moved[keep], values[keep], returns[keep])

theirs = losses.shaped_rewards(reward[ends[walk]], old - reference, keep, 0.5)
gae_theirs = losses.gae(theirs, values, keep, 1.0, 0.95)
flat = runs[0][0][where[keep]]
sides = {
    "pair loss": (
        pair_loss(reward[ends], chosen, rejected),
        losses.pair_loss(reward[ends[chosen]], reward[ends[rejected]]) / len(chosen),
    ),
    "log-probabilities": (old[keep], vocabulary.log_probs_of(flat, what[keep])),
    "shaped rewards": (mine, theirs),
    "advantages": (advantages, gae_theirs[0]),
    "returns": (returns, gae_theirs[1]),
    "whitened": (white, losses.whiten(advantages, keep)),
    "policy loss": (policy_loss(*of_policy, 0.2), losses.policy_loss(*of_policy, 0.2)[0]),
    "value loss": (value_loss(*of_critic, 0.2), losses.value_loss(*of_critic, 0.2)),
}
for name, (plain, product) in sides.items():
    difference = float((plain - product).abs().max())
    print(f"{name:18} largest difference {difference:.0e}")
    assert difference < 1e-6

# %% [markdown]
# ## And from the command line, with a language model
#
# Now the guide is a Llama. It has 20,960 parameters and five words (`e`, `n`, end, padding, `?`), it is asked `?`, and
# it was taught the habit, so that it walks as the table did. The choices are those of the first seed, written as rows
# of a preference dataset. Two commands do what you did: `preferent reward` and `preferent ppo`.

# %%
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

torch.set_default_dtype(torch.float32)
torch.set_num_threads(1)
town.write_model(Path("base"))
base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
ids = moves.where(mask, 3)
with torch.no_grad():
    said = town.walk_log_probs(base, ids, mask).double()
error = float((said - log_probs(habit)).abs().max())
print(f"{base.num_parameters():,} parameters; largest error in the log-probability of a walk: {error:.3f}")
assert base.num_parameters() == 20960 and error < 0.05


def rows(name, lines):
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def written(chosen, rejected, seed):
    """Pairs as rows; which candidate stands first is drawn, or the order would say the answer."""
    swap = torch.rand(len(chosen), generator=torch.Generator().manual_seed(seed)) < 0.5
    for good, bad, last in zip(chosen.tolist(), rejected.tolist(), swap.tolist(), strict=True):
        two = [walks.texts[bad], walks.texts[good]] if last else [walks.texts[good], walks.texts[bad]]
        yield {"input_text": "?", "candidate_0": two[0], "candidate_1": two[1], "choice": int(last)}


for seed, (part, count) in enumerate({"train": 3000, "validation": 500, "test": 500}.items()):
    rows(f"{part}.jsonl", written(*(pairs[0] if part == "train" else choices(count, 100 + seed)), seed))
rows("prompts.jsonl", [{"input_text": "?"}])
Path("recipe.yaml").write_text(f"""
large_model_reference: base
prompt_sequence_length: 4
target_sequence_length: 4
precision: fp32
threads: 1
checkpoint_every: 1000
reward_model_train_steps: 150
reward:
  {{batch_size: 256, learning_rate: 5.0e-3, schedule: linear, validation_every: 50, missing_eos_score: null}}
kl_coeff: 0.5
reinforcement_learning_train_steps: {at(ci=20, full=60)}
ppo:
  {{batch_size: 512, minibatches: 1, epochs: 4, learning_rate: 3.0e-3, critic_learning_rate: 3.0e-3, schedule: linear,
   validation_every: 1000}}
""")
print(Path("train.jsonl").read_text().splitlines()[0])

# %%
llama_foresees = predict("Of 100 new choices, how many does the Llama's reward model foresee?", 70)
llama_misses = predict("And how many per cent of the possible gain does its policy miss?", 20)

# %%
# Run: the two commands.
data = [f"--in={part}={part}.jsonl" for part in ("train", "validation", "test")]
preferent("reward", "--recipe", "recipe.yaml", "--in", "model=base", *data, "--out", "reward", show=1)
data = ["--in=train=prompts.jsonl", "--in=validation=prompts.jsonl"]
models = ["--in=model=base", "--in=reward=reward/model"]
preferent("ppo", "--recipe", "recipe.yaml", *models, *data, "--out", "policy", show=1)

scorer = AutoModelForSequenceClassification.from_pretrained("reward/model", dtype=torch.float32)
tuned = AutoModelForCausalLM.from_pretrained("policy/model", dtype=torch.float32)
with torch.no_grad():
    short = mask.sum(-1)  # the score is read at the last token
    hidden = scorer.model(input_ids=torch.cat([torch.full((31, 1), 4), ids], 1)).last_hidden_state
    judged = scorer.score(hidden[torch.arange(31), short]).squeeze(-1).double()
    policy = town.walk_log_probs(tuned, ids, mask).double()
llama_foresees.compare(100 * agreement(judged), "of 100")
earned, kl = policy.exp() @ judged, policy.exp() @ (policy - said)
best = 0.5 * torch.logsumexp(said + judged / 0.5, 0)
missed = float((best - (earned - 0.5 * kl)) / (best - said.exp() @ judged))
llama_misses.compare(100 * missed, "per cent")
print(f"reward {earned:.3f}, KL {kl:.3f} nats: the objective is {earned - 0.5 * kl:.3f}, the best possible {best:.3f}")
claim("agreement of the Llama's reward model with people", 100 * agreement(judged), 77, within=1)
claim("per cent of the gain that the Llama misses", 100 * missed, 1, within=1)

fig, axis = plt.subplots(figsize=(5, 3.2))
axis.plot(judged - said.exp() @ judged, reward[ends], "o", alpha=0.6)
axis.axline((0, 0), slope=1, color="#7a7a7a")
axis.set(
    xlabel="score by the Llama", ylabel="score by the table", title="31 walks, two reward models, the same choices"
)
plt.show()

# %% [markdown]
# ## Replay the command in plain torch
#
# The command wrote down every walk that it sampled, before it learned from it. So its training can be repeated with
# the functions of *this notebook*: the same walks, the same losses, AdamW of torch. If `preferent` did anything else,
# even a mean over other tokens or a missing factor, the curves would part at once.


# %%
def token_log_probs(model, tokens, ids, mask):
    logits = model(input_ids=tokens).logits[:, :-1].clone()
    logits[..., 3] = -torch.inf  # padding is never said
    table = logits.log_softmax(-1)
    return torch.where(mask, table.gather(-1, ids.where(mask, 0)[..., None]).squeeze(-1), 0), table


def replay(steps, total, beta=0.5, rate=3e-3):
    """The first steps of `preferent ppo`, from its rollouts, with the functions of this notebook."""
    policy, reference = (AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32) for _ in range(2))
    critic = AutoModelForSequenceClassification.from_pretrained("reward/model", dtype=torch.float32)
    bias = json.loads(Path("policy/score.json").read_text())["terms"][0]["members"]["reward"]["bias"]
    optimizers = [torch.optim.AdamW(m.parameters(), lr=rate, eps=1e-5, weight_decay=0.0) for m in (policy, critic)]
    for step in range(steps):
        found = load_file(f"policy/rollouts/{step:06d}.safetensors")
        ids, mask, score = found["ids"].long(), found["answer_mask"], (found["scores.reward"] - bias).float()
        tokens = torch.cat([torch.full((len(ids), 1), 4), ids.where(mask, 3)], 1)

        def values():
            return critic.score(critic.model(input_ids=tokens).last_hidden_state[:, :-1]).squeeze(-1) - bias  # noqa: B023

        with torch.no_grad():
            old, table = token_log_probs(policy, tokens, ids, mask)
            before, reference_table = token_log_probs(reference, tokens, ids, mask)
            kl = (table.exp() * (table - reference_table).nan_to_num(0)).sum(-1)
            old_values = values()
            advantages, returns = gae(shaped_rewards(score, old - before, mask, beta), old_values, mask, 1.0, 0.95)
            advantages = whiten(advantages, mask)
        totals = torch.zeros(2)
        for _ in range(4):
            new = token_log_probs(policy, tokens, ids, mask)[0]
            losses_now = torch.stack(
                [
                    policy_loss(new[mask], old[mask], advantages[mask], 0.2),
                    value_loss(values()[mask], old_values[mask], returns[mask], 0.2),
                ]
            )
            losses_now = losses_now / mask.sum()
            (losses_now[0] + 0.1 * losses_now[1]).backward()
            for model, optimizer in zip((policy, critic), optimizers, strict=True):
                optimizer.param_groups[0]["lr"] = rate * (1 - step / total)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            totals += losses_now.detach() / 4
        leash = torch.where(mask, kl, 0).sum(-1).mean()
        yield {"reward": score.mean(), "objective/kl": leash, "loss/policy": totals[0], "loss/value": totals[1]}


# %%
parted = predict("Three steps, twelve updates in single precision: at which decimal do the two part? (6: at 1e-6)", 3)

# %%
# Run: three steps of the command, again in plain torch.
logged = [json.loads(line) for line in Path("policy/metrics.jsonl").read_text().splitlines()]
logged = [line for line in logged if "reward" in line]
largest = 0.0
for step, plain in enumerate(replay(3, total=at(ci=20, full=60))):
    for name, number in plain.items():
        difference = abs(float(number) - logged[step][name])
        largest = max(largest, difference)
        print(f"step {step + 1} {name:13} command {logged[step][name]:+.7f} notebook {float(number):+.7f}")
parted.compare(-np.log10(largest), "decimals")
assert largest < 1e-6

# %% [markdown]
# The table, the closed form, `preferent`'s functions and its command line agree: the Llama's reward model foresees
# 77 % of new choices, as the table's does, and its policy misses about 1 % of what any policy can gain. Nothing in
# between is hidden.
#
# Move the sliders of [the leash](leash.html) to see how β, the clip range and λ act in this very town; the page works
# from disk.
#
# ## Exercises
#
# Put your answer in place of `None`. The cell says what is wrong, not what is right.
#
# **1.** In this town, tuned for the *true* worth (`gold`), with which β does the best policy lie exactly 1 nat from the
# habit? (Two decimals are enough. You have `optimum` and `expected`.)

# %%
beta_of_one_nat = None
exercises.one_nat(beta_of_one_nat)

# %% [markdown]
# **2.** Somebody multiplies every score by 2 and adds 10. Which β gives exactly the policy that β = 0.5 gave before?

# %%
beta_after = None
exercises.rescaled(beta_after)

# %% [markdown]
# **3.** Write `whiten(x, mask)` yourself, in torch: mean 0 and variance 1 over the entries that count, 0 elsewhere.
# Hand over the function.

# %%
my_whiten = None
exercises.whitening(my_whiten)

# %% [markdown]
# **4.** Tuned for `gold` with β = 0.5: how many times as often as by habit does the best policy walk to the bakery? (A
# factor, to two digits. You can count, or you can read it off the closed form.)

# %%
factor = None
exercises.how_much_more_often(factor)

# %%
finish()
