# %% [markdown]
# # 2. The two datasets
#
# **What is in the two files that everything else is learned from, and how would you notice that one of them is
# spoiled?**
#
# Tuning from human feedback needs two datasets. The *preference dataset* has prompts with two answers each, and which
# of them a person chose: the reward model learns from it. The *prompt dataset* has prompts alone: the policy answers
# them while it is tuned. Everything that goes wrong in these files comes back later as a strange curve, when it is
# expensive to find. So we look first, then we spoil the files in six ways, and find each of the six.
#
# The data are generated: short posts about who did what where, and summaries with mistakes. This is the world of
# `preferent quickstart`. Its advantage is that the true preference is known, so that every claim has a ceiling.

# %%
import collections
import json
import re
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from lesson import SIZE, at, begin, claim, finish, predict, preferent

begin("2_the_two_datasets")

import small_world
from exercises import two_datasets as exercises

from preferent import files, randomness
from preferent.commands.data_files import check
from preferent.commands.inference import from_scratch
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Message, Prompt
from preferent.evaluation import reward_findings
from preferent.quickstart import guided_run, synthetic_posts, true_preference

ROWS = at(ci=2500, full=6000)
guided_run.preferences(0, ROWS, Path("preference.jsonl"))
guided_run.prompts(0, ROWS // 2, Path("prompt.jsonl"))
pairs, prompts = files.read_jsonl(Path("preference.jsonl")), files.read_jsonl(Path("prompt.jsonl"))
print(f"{len(pairs)} pairs, {len(prompts)} prompts\n")
print(json.dumps(pairs[0], indent=1))
print(json.dumps(prompts[0], indent=1))

# %% [markdown]
# ## Look at rows
#
# The first look is at rows, not at statistics. `input_text` is the whole prompt, up to and with `TL;DR:`. Each
# candidate begins with a space, because prompt and answer are put together unchanged. `choice` is 0 or 1: *candidate_0
# or candidate_1 was better*. A row without these four keys is of no use to the reward model.

# %%
for row in pairs[1:5]:
    print(row["input_text"].replace("\n", " ⏎ "))
    for place in (0, 1):
        print("   chosen " if row["choice"] == place else "          ", row[f"candidate_{place}"])

# %% [markdown]
# ## Count
#
# How often is the first candidate the chosen one? If people saw the two in random order, about half of the time. And
# how often is the *shorter* one chosen? That says something about taste: here people dislike summaries that ramble.
#
# Before you run the next cell: of the pairs whose candidates differ in length, in what share was the shorter chosen?

# %%
shorter_guess = predict("In what share of the pairs was the shorter summary chosen?", 0.7)


# %%
# Run
def words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def chosen(row: dict) -> str:
    return row[f"candidate_{row['choice']}"]


def rejected(row: dict) -> str:
    return row[f"candidate_{1 - row['choice']}"]


unequal = [row for row in pairs if words(chosen(row)) != words(rejected(row))]
shorter = float(np.mean([words(chosen(row)) < words(rejected(row)) for row in unequal]))
first = float(np.mean([row["choice"] == 0 for row in pairs]))
shorter_guess.compare(shorter)
claim("candidate_0 was chosen in this share of the pairs", first, 0.5, 0.03)

figure, (left, right) = plt.subplots(1, 2)
bins = np.arange(2, 32, 2)
left.hist([words(row["input_text"]) for row in pairs], bins=np.arange(8, 44, 2), color="#1f6fb4")
left.set(title="prompts", xlabel="words", ylabel="rows")
right.hist([[words(chosen(row)) for row in pairs], [words(rejected(row)) for row in pairs]], bins=bins)
right.set(title="candidates", xlabel="words")
right.legend(["chosen", "rejected"])
plt.show()

# %% [markdown]
# ## The ceiling
#
# People disagree, also with themselves. Here the annotator follows a known rule: candidate 1 is chosen with
# probability σ(2 · difference in utility), where utility counts right and wrong facts, length, and a missing end. So
# we can compute what nobody can know of real data: how often *perfect knowledge of the true preference* would agree
# with the labels. No reward model can do better on new pairs. Everything that you read about accuracies has such a
# ceiling, usually an unknown one.

# %%
ceiling_guess = predict("How often does the true preference agree with the annotator?", 0.95)

# %%
# Run
ceiling = true_preference.ceiling(pairs)


def probability(row: dict) -> float:
    """Return the probability that the annotator chooses candidate 1."""
    facts = synthetic_posts.facts_of(row["input_text"])
    return true_preference.preference_probability(facts, row["candidate_0"], row["candidate_1"])


probabilities = np.array([probability(row) for row in pairs])
labels = np.array([row["choice"] for row in pairs])
agreement = float(np.where(probabilities == 0.5, 0.5, (probabilities > 0.5) == labels).mean())
ceiling_guess.compare(ceiling)
error = float(np.sqrt((probabilities * (1 - probabilities)).mean() / len(pairs)))
print(f"expected {ceiling:.3f}, counted in this file {agreement:.3f}, standard error {error:.4f}")
assert abs(agreement - ceiling) < 4 * error, "the file was not labelled by this annotator"

# %% [markdown]
# ## Prompts that occur often, and contradictions
#
# In real data several people are asked about the same pair. We ask two more annotators about the first 300 pairs, and
# put their rows into the file. A pair is *contradictory* if each of its two candidates was chosen at least once.
#
# The expected number is known again: a pair stays without contradiction with probability p³ + (1 − p)³.

# %%
contradictions_guess = predict("Of 300 pairs that three people labelled, how many are contradictory?", 30)

# %%
# Run
ASKED = 300
uniforms = randomness.uniforms(0, "lesson/two more annotators", np.arange(ASKED)[:, None], np.arange(2))
more = [
    row | {"choice": int(uniforms[index, person] < probabilities[index])}
    for index, row in enumerate(pairs[:ASKED])
    for person in (0, 1)
]
files.write_jsonl(Path("three_people.jsonl"), pairs + more)
print(preferent("data", "check", "three_people.jsonl", "prompt.jsonl"))

p = probabilities[:ASKED]
expected = float((1 - p**3 - (1 - p) ** 3).sum())
counts = check.check_files(["three_people.jsonl"]).files[0]
contradictions_guess.compare(counts.tally.contradictory, "pairs")
spread = float(np.sqrt(((1 - p**3 - (1 - p) ** 3) * (p**3 + (1 - p) ** 3)).sum()))
print(f"expected {expected:.1f} ± {spread:.1f}")
assert abs(counts.tally.contradictory - expected) < 4 * spread
often = collections.Counter(row["input_text"] for row in pairs + more).most_common(1)[0][1]
assert often >= 3 and counts.repeated_prompts >= 2 * ASKED

# %% [markdown]
# Read that output once in full: it is what you should look at before every run. It names the kind of each file, counts
# rows and different prompts, duplicates and contradictions, prompts that both files share (a run keeps each in one
# part, so that nothing is tested on what was trained), and shows rows with the chosen answer marked.
#
# Some contradictions are normal. `preferent doctor` speaks up above 15 %: with more, a source has probably swapped its
# labels.

# %% [markdown]
# ## Spoil it: six ways
#
# Each function below takes the rows and spoils them in one way that we have seen in real data. For each one say
# *before* you run it what you would look at.


# %%
def unusable(rows: list[dict]) -> list[dict]:
    """An export that went wrong: choices that count from 1, a key that is missing, the same answer twice."""
    spoiled = [dict(row) for row in rows]
    for row in spoiled[10:15]:
        row["choice"] += 1
    for row in spoiled[20:25]:
        del row["candidate_1"]
    for row in spoiled[30:35]:
        row["candidate_1"] = row["candidate_0"]
    return spoiled


def repeated(rows: list[dict]) -> list[dict]:
    """The same export, put together twice for a quarter of the rows."""
    return rows + rows[: len(rows) // 4]


def reversed_source(rows: list[dict]) -> list[dict]:
    """A second source that asked about a quarter of the pairs again, and counts its candidates from the other end."""
    return rows + [row | {"choice": 1 - row["choice"]} for row in rows[: len(rows) // 4]]


def padded(rows: list[dict]) -> list[dict]:
    """Web pages instead of posts: a long navigation in front of every third text."""
    menu = "Home News Sport Weather Travel Money Login Help Contact. " * 8
    return [row | {"input_text": menu + row["input_text"]} if i % 3 == 0 else row for i, row in enumerate(rows)]


def tired(rows: list[dict]) -> list[dict]:
    """An annotator who clicks on the first answer without reading, in 40 % of the pairs."""
    sleepy = randomness.uniforms(0, "lesson/tired", np.arange(len(rows)), 0) < 0.4
    return [row | {"choice": 0} if asleep else row for row, asleep in zip(rows, sleepy, strict=True)]


def impressed(rows: list[dict]) -> list[dict]:
    """An annotator who takes the longer answer for the better one."""
    longer = [words(row["candidate_1"]) - words(row["candidate_0"]) for row in rows]
    return [row | {"choice": int(more > 0)} if more else row for row, more in zip(rows, longer, strict=True)]


SPOILED = {"unusable": unusable, "repeated": repeated, "reversed_source": reversed_source, "padded": padded,
           "tired": tired, "impressed": impressed}  # fmt: skip
for name, spoil in SPOILED.items():
    files.write_jsonl(Path(f"{name}.jsonl"), spoil(pairs))

# %% [markdown]
# The first three leave traces that counting finds. In `unusable` fifteen rows were touched. How many of them can be
# used all the same?

# %%
usable_guess = predict("Of the 15 rows that `unusable` touched, how many does `data check` still accept?", 5)

# %%
# Run
found = {name: check.check_files([f"{name}.jsonl"]).files[0] for name in ("unusable", "repeated", "reversed_source")}
print("\n".join(map(str, found["unusable"].dropped)))
accepted = 15 - len(found["unusable"].dropped)
usable_guess.compare(accepted, "rows")
still = [row["choice"] for row in files.read_jsonl(Path("unusable.jsonl"))[10:15]]
print("choices of the five rows that count from 1:", still)
for name in ("repeated", "reversed_source"):
    print(f"{name}: {found[name].tally.duplicates} duplicates, {found[name].tally.contradictory} contradictory pairs")
assert accepted == still.count(1), "a 1 that was a 0 looks like any other 1"
assert found["repeated"].tally.duplicates == len(pairs) // 4 and found["repeated"].tally.contradictory == 0
assert found["reversed_source"].tally.contradictory == len(pairs) // 4

# %% [markdown]
# Two things to keep. `data check` names file and line of every row that it cannot use, and the exit code is 4, so a
# script can stop there. And a wrong choice that is a *possible* choice is invisible: a 0 that became a 1 is just
# another opinion. Only people who label twice, or a model that learns from the rest, can contradict it.

# %% [markdown]
# ## What the model sees: tokens
#
# The fourth fault is about lengths, and length is counted in tokens. So here is a tokenizer, trained on these texts,
# and a tiny Llama with random weights. (`preferent scratch` makes both; every real model brings its own tokenizer.)

# %%
SMALL = {"vocab_size": 1024, "hidden_size": 32, "layers": 2, "heads": 4, "max_position_embeddings": 512}
from_scratch.make([Path("preference.jsonl")], Path("model"), **SMALL)
tokenizer = Tokenizer.load(Path("model"))
INSTRUCTION = "Summarize in less than 50 words."


def show(ids: list[int]) -> str:
    return " ".join(tokenizer._token(token) for token in ids)


post = Prompt(pairs[0]["input_text"])
plain = tokenizer.encode_prompts([post], None, 512)[0]
asked = tokenizer.encode_prompts([post], INSTRUCTION, 512)[0]
print(f"{len(plain.ids)} tokens without an instruction:\n{show(plain.ids)}\n")
print(f"{len(asked.ids)} tokens with it:\n{show(asked.ids)}")
assert asked.text == f"{INSTRUCTION}\n\n\n{post.input_text}"

# %% [markdown]
# `<s>` begins the text, `▁` is a space, and the instruction stands in front of the post, three line ends between them.
# Words that the tokenizer did not meet in training are cut into letters: the instruction costs many more tokens than
# it has words. It is put in front of *every* prompt, in training and afterwards. If your rows already contain it,
# leave it out of the recipe, or the model reads it twice.
#
# Now cut the prompt: `prompt_sequence_length` is the most tokens that a prompt may have. What do you think is lost,
# the beginning or the end of the text? And the instruction?

# %%
limit = len(asked.ids) - 10
lost_guess = predict(f"A limit of {limit} tokens is 10 too few. How many words of the instruction are lost?", 6)

# %%
# Run
cut = tokenizer.encode_prompts([post], INSTRUCTION, limit)[0]
print(f"{len(cut.ids)} tokens:\n{show(cut.ids)}")
read = tokenizer.decode(cut.ids)
lost = sum(word not in read.split() for word in INSTRUCTION.split())
lost_guess.compare(lost, "words")
assert lost == 0 and cut.cut and read.endswith("TL;DR:") and len(cut.ids) <= limit
assert not read.endswith(post.input_text)

# %% [markdown]
# The first words of the *post* go; instruction and end stay, because the model must know what is asked and where to
# begin. That is the right choice for a dialogue, and a bad one for news articles, whose first words matter most. The
# only remedy is to see it: that is what `--model` of `data check` is for.
#
# **The end token.** A complete answer is closed by `</s>`, and the reward model reads its score there. An answer that
# is longer than `target_sequence_length` is cut and *not* closed: it has no end, as the policy's own answers that
# ramble on.

# %%
short = pairs[0]["candidate_1"]
answers = [short, 2 * f"{short} It was raining. What a day! We all talked about it."]
for ids, shortened in tokenizer.encode_answers([post.input_text] * 2, answers, 24):
    print(f"{len(ids):2} tokens, {'cut' if shortened else 'complete'}: {show(ids)}")
    assert (ids[-1] == tokenizer.eos_id) != shortened

# %% [markdown]
# **The template.** In a conversation every turn is wrapped as the model's chat template says. The instruction becomes
# the system text. Never write these marks by hand: `preferent` renders the template of the model, letter by letter as
# `transformers` does. Here are two templates of our own for the same two turns.

# %%
TEMPLATES = {
    "brackets": "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "end of turn": "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
}
turns = Prompt(messages=(Message("user", "Anna was at the market. She could not find the keys anywhere."),))
for name, template in TEMPLATES.items():
    folder = Path(f"chat {name}")
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / file).write_bytes((Path("model") / file).read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    chat = Tokenizer.load(folder)
    encoded = chat.encode_prompts([turns], INSTRUCTION, 512)[0]
    ends = show([chat.turn_end_id])
    print(f"{name}: {len(encoded.ids)} tokens, an answer ends with {ends}\n{encoded.text!r}\n")
    assert "Anna was at the market." in encoded.text and INSTRUCTION in encoded.text

# %% [markdown]
# Same words, other tokens. A policy and a reward model that read different templates do not see the same text:
# `doctor` calls that `template-mismatch`, and it is sick.
#
# Back to the fourth fault, the padded prompts. `data check --model` counts tokens against the limits of your recipe.

# %%
padded_guess = predict("Which share of the padded file's prompts will be cut at 64 tokens?", 0.5)

# %%
# Run
limits = ("--prompt-sequence-length", 64, "--target-sequence-length", 24)
said = preferent("data", "check", "padded.jsonl", "--model", "model", *limits)
print("\n".join(line for line in said.splitlines() if "tokens" in line or "█" in line))
lengths = check.check_files(["padded.jsonl"], tokenizer=Path("model"), prompt_tokens=64, target_tokens=24).files[0]
share = lengths.prompt_lengths.cut / lengths.prompt_lengths.texts
padded_guess.compare(share)
claim("share of the prompts that are cut", share, 1 / 3, 0.01)
healthy = check.check_files(["preference.jsonl"], tokenizer=Path("model"), prompt_tokens=64, target_tokens=24).files[0]
assert healthy.prompt_lengths.cut == 0 < healthy.answer_lengths.cut

# %% [markdown]
# The answers that are cut are no fault of the file: they are the drafts that never come to an end, and people disliked
# them.
#
# ## What only the reward model's report finds
#
# The last two faults have no bad row, no duplicate, no contradiction: every single choice is possible. They are
# *habits* of the annotators, and show only in the mass. The stage `reward` measures them on held-out pairs, writes
# `reward/quality.json`, and the report says it in sentences before anything is tuned.
#
# We train three small reward models: on the good file, on that of the tired annotator, on that of the impressed one.
# In the good file candidate_0 was chosen in half of the pairs. The tired annotator clicks on it in 40 % of the pairs
# without reading.

# %%
position_guess = predict("How often is candidate_0 chosen in the tired annotator's file?", 0.6)
length_guess = predict("How often is the longer one chosen in the impressed annotator's file?", 0.8)

# %%
# Run
STEPS = at(ci=60, full=200)


def learned(name: str) -> dict:
    """Train a reward model on a file; return its `quality.json`."""
    recipe = small_world.recipe(
        preference_dataset=f"{name}.jsonl",
        prompt_dataset=None,
        eval_dataset=None,
        prompt_sequence_length=64,
        data={"test_share": 0.15},
        compare={"judge": "reward"},
        reward_model_train_steps=STEPS,
        reward={"learning_rate": 0.003, "warmup_steps": 10, "validation_every": STEPS},
    )
    run = Path("runs") / name
    small_world.stage("data", recipe, run / "data")
    small_world.stage("reward", recipe, run / "reward", model=Path("model"), **small_world.pairs(run))
    return files.read_json(run / "reward/quality.json")


qualities = {name: learned(name) for name in ("preference", "tired", "impressed")}

# %%
for name, quality in qualities.items():
    print(f"\n{name}")
    for remark in reward_findings.remarks(quality):
        if remark.about in ("accuracy", "rules", "length", "position"):
            line = f"{'!' if remark.warns else ' '} {remark.about}: {remark.says}"
            print(textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="      "))

first_chosen = float(np.mean([row["choice"] == 0 for row in tired(pairs)]))
position_guess.compare(first_chosen)
length_guess.compare(qualities["impressed"]["test"]["longer_accuracy"])
warned = {name: {r.about for r in reward_findings.remarks(q) if r.warns} for name, q in qualities.items()}
claim("share of first candidates chosen in the tired annotator's file", first_chosen, 0.7, 0.02)
assert "position" in warned["tired"] and "position" not in warned["preference"]
if SIZE == "full":
    assert "length" in warned["impressed"] and "length" not in warned["preference"]

# %% [markdown]
# The lines with `!` are the ones to act on. The good file has none about position or length. The tired annotator's
# file warns about position: the labels depend on the order in which the answers were shown. The impressed annotator's
# reward model follows length, and a policy that is tuned on it will write as long as it may.
#
# Note what the *accuracy* says of the impressed annotator: it is the best of the three! An accuracy is agreement with
# the labels. It cannot tell you whether the labels are what you wanted.

# %%
accuracies = {name: quality["accuracy"]["share"] for name, quality in qualities.items()}
figure, axes = plt.subplots()
axes.bar(list(accuracies), list(accuracies.values()), width=0.5, label="accuracy on its own labels")
for place, quality in enumerate(qualities.values()):
    axes.vlines(place, *quality["accuracy"]["interval"], color="black")
axes.axhline(ceiling, color="#2e8b57", linestyle="--", label="ceiling of the good file")
axes.axhline(0.5, color="#7a7a7a", linestyle=":", label="a coin")
axes.set(ylabel="share of test pairs", ylim=(0.4, 1.05))
axes.legend(loc="upper left", ncols=3)
plt.show()
if SIZE == "full":
    assert accuracies["impressed"] == max(accuracies.values()) and accuracies["preference"] < ceiling

# %% [markdown]
# ## Exercises
#
# Put your answers into the cells. The check says what is wrong with an answer, not the answer. `None` is no answer
# yet.
#
# **1. What is wrong with this file?** `mystery.jsonl` was spoiled in two of the six ways at once. Find both. Answer
# with a set of two names of the functions above, for instance `{"padded", "tired"}`. Use anything that this lesson
# used.

# %%
files.write_jsonl(Path("mystery.jsonl"), exercises.mystery(pairs, SPOILED))
answer = None
exercises.two_faults(answer)

# %% [markdown]
# **2. How many prompts?** A run holds out a share of 5 % of the prompts for the test (`data.test_share: 0.05`). You
# want a verdict on at least 400 test prompts. How many different prompts do your files need?

# %%
answer = None
exercises.prompts_for_the_test(answer)

# %% [markdown]
# **3. A fourth annotator.** Four people label a pair on which the annotators choose candidate 1 with probability 3/4.
# With what probability do the four rows contain a contradiction? (three digits)

# %%
answer = None
exercises.four_annotators(answer)

# %% [markdown]
# **4. Which one is invisible?** All six faults but one half of one can be found without knowing the true preference.
# Which change of rows did neither `data check` nor the report notice? Answer with a pair: the value that `choice` had
# before, and the value that it had afterwards.

# %%
answer = None
exercises.invisible(answer)

# %%
finish()
