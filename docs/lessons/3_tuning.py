# %% [markdown]
# # 3. Tuning
#
# **How does one fill in the pipeline of the course, so that it runs, here, and ends with a better model?**
#
# The course on Google Cloud's pipelines compiles `rlhf_pipeline`, computes the steps, fills in `parameter_values`, and
# stops there: to run it would take a project, a quota of 64 TPU cores or 8 large GPUs, and a day. Here the same cells
# run to the end on two cores. The only line that changes is one import; the values that are filled in are those of a
# small model and of small data.
#
# This lesson runs in the environment of the pipelines: `make kubeflow` in the source makes it, as `.venv-kubeflow`.

# %%
import json
import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml
from IPython import display
from lesson import COLORS, at, begin, claim, finish, predict

begin("3_tuning")

import small_world
from exercises import tuning as exercises

import preferent
from preferent import files
from preferent.runs import progress

# %% [markdown]
# ## Data and a base model
#
# The posts and summaries of lesson 2, and a small model that has learned to write summaries as hurried writers do. It
# stands where the course names `llama-2-7b`.

# %%
small_world.make(at(ci=2500, full=3500), at(ci=1000, full=2000), at(ci=300, full=1000), 100)
WRITER = {"dataset": "demonstrations.jsonl", "train_steps": at(ci=100, full=160), "learning_rate": 0.005}
WRITER |= {"warmup_steps": 20, "schedule": "linear", "validation_every": 1000}
small_world.stage("sft", small_world.recipe(sft=WRITER), Path("base"), model=Path("model"))
files.write_jsonl(
    Path("eval.jsonl"), [{"input_text": row["input_text"]} for row in files.read_jsonl(Path("test.jsonl"))]
)
PREF_DATASET_SIZE = len(files.read_jsonl(Path("preference.jsonl")))
PROMPT_DATASET_SIZE = len(files.read_jsonl(Path("prompt.jsonl")))
print(f"{PREF_DATASET_SIZE} preferences, {PROMPT_DATASET_SIZE} prompts")

# %% [markdown]
# ## The course's cells
#
# **Compile.** In the course the first line is `from google_cloud_pipeline_components.preview.llm import
# rlhf_pipeline`. Here it is

# %%
from kfp import compiler

from preferent.kubeflow import rlhf_pipeline

RLHF_PIPELINE_PKG_PATH = "rlhf_pipeline.yaml"
compiler.Compiler().compile(pipeline_func=rlhf_pipeline, package_path=RLHF_PIPELINE_PKG_PATH)
print("\n".join(Path(RLHF_PIPELINE_PKG_PATH).read_text().splitlines()[:12]))

# %% [markdown]
# **Compute the steps.** A step is one batch of 64. So the number of steps of one pass over the data (an *epoch*) is
# the number of rows divided by 64, rounded up, and the parameter is that times the number of epochs. The course takes
# 30 epochs of 3000 preferences and 10 epochs of 2000 prompts. Say how many steps of the reward model that is before
# you run the cell.

# %%
steps_guess = predict("30 epochs of 3000 preferences, in batches of 64: how many steps?", 1500)

# %%
# Run
BATCH_SIZE = 64


def steps(rows: int, epochs: int) -> int:
    return math.ceil(rows / BATCH_SIZE) * epochs


steps_guess.compare(steps(3000, 30), "steps", close=0.01)
assert steps(3000, 30) == 1410 and steps(2000, 10) == 320
assert progress.MANY_EPOCHS == 50

REWARD_NUM_EPOCHS = 3
RL_NUM_EPOCHS = 1
reward_model_train_steps = steps(PREF_DATASET_SIZE, REWARD_NUM_EPOCHS)
reinforcement_learning_train_steps = steps(PROMPT_DATASET_SIZE, RL_NUM_EPOCHS)
print(f"here: {reward_model_train_steps} steps of the reward model, {reinforcement_learning_train_steps} of the policy")

# %% [markdown]
# Thirty epochs over three thousand rows is much: the course's own logs end with a `rank_loss` of practically zero,
# which means that the reward model knows the rows by heart. `preferent` warns above 50 epochs, measures accuracy on
# held-out pairs, and keeps the best checkpoint. One to four epochs are usual.
#
# **Fill in.** The keys are the course's. `recipe` is the one that Google's pipeline does not have: a text with
# whatever is fixed there. A small model that is trained in full needs larger learning rates than Llama with LoRA.

# %%
RECIPE = """
threads: 1
precision: fp32
reward: {learning_rate: 0.003, warmup_steps: 10, schedule: linear, validation_every: 50}
ppo: {learning_rate: 0.0005, critic_learning_rate: 0.001, warmup_steps: 2, epochs: 2, minibatches: 2}
compare: {judge: reward}
"""
parameter_values = {
    "preference_dataset": "preference.jsonl",
    "prompt_dataset": "prompt.jsonl",
    "eval_dataset": "eval.jsonl",
    "large_model_reference": "base/model",
    "reward_model_train_steps": reward_model_train_steps,
    "reinforcement_learning_train_steps": reinforcement_learning_train_steps,
    "reward_model_learning_rate_multiplier": 1.0,
    "reinforcement_learning_rate_multiplier": 1.0,
    "kl_coeff": 0.1,
    "prompt_sequence_length": 64,
    "target_sequence_length": 24,
    "recipe": RECIPE,
}

# %% [markdown]
# ## Run it
#
# The course calls `aiplatform.PipelineJob`. `preferent.kubeflow.PipelineJob` has its methods and runs on this machine,
# each task a process of its own, without Docker. `submit` returns at once, so that we can watch.
#
# Before you run it: at which loss does a reward model *begin* that has learned nothing? (It is asked which of two
# answers is better, and its loss is the negative logarithm of the probability that it gives to the right one.)

# %%
loss_guess = predict("What is rank_loss at the first step?", 1.0)

# %%
# Run
from preferent.kubeflow import PipelineJob, PipelineState

job = PipelineJob(
    display_name="tutorial-rlhf-tuning",
    pipeline_root="bucket",
    template_path=RLHF_PIPELINE_PKG_PATH,
    parameter_values=parameter_values,
)
RUN = Path("bucket/tutorial-rlhf-tuning")


def curve(stage: str, figure: str) -> tuple[list[int], list[float]]:
    """Return a curve of the run as far as it is."""
    path = RUN / stage / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [row for row in map(json.loads, lines) if row.get(figure) is not None]
    return [row["step"] for row in rows], [row[figure] for row in rows]


def draw() -> plt.Figure:
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.4))
    curves = (("reward", "rank_loss"), ("policy", "reward"), ("policy", "kl_loss"))
    for place, (stage, name) in zip(axes, curves, strict=True):
        place.plot(*curve(stage, name), color=COLORS["blue"])
        place.set(title=name, xlabel="step")
    plt.close(figure)
    return figure


job.submit()
picture = display.display(draw(), display_id=True)
while job.state is PipelineState.PIPELINE_STATE_RUNNING:
    time.sleep(5)
    picture.update(draw())
picture.update(draw())
assert job.state is PipelineState.PIPELINE_STATE_SUCCEEDED, job.log.read_text()[-2000:]

# %%
print("\n".join(f"{task.task_name:28} {task.state}" for task in job.task_details))
losses = curve("reward", "rank_loss")[1]
loss_guess.compare(losses[0])
claim("rank_loss at the first step is the logarithm of 2", losses[0], math.log(2), 0.1)
assert {task.state for task in job.task_details} == {"SUCCESS"}

# %% [markdown]
# Read them as the course says. `rank_loss` begins at the logarithm of 2, a coin, falls and flattens. `reward` rises.
# `kl_loss`, the distance from the base in nats per answer, rises and should flatten too. Everything that the course
# looks up in the Cloud console is a file here: TensorBoard's in `bucket/tutorial-rlhf-tuning-artifacts`, numbers in
# `metrics.jsonl`, and the report in `report.html`.
#
# ## What came out
#
# The course puts the answers of both models into a table, by these lines, and judges by eye. Google's pipeline makes
# only the tuned answers; here both files are made.

# %%
import pandas as pd

root = Path("bucket/tutorial-rlhf-tuning-artifacts/bulk-inferrer")
eval_data_tuned, eval_data_untuned = (
    [json.loads(line) for line in (root / f"eval_results_{name}.jsonl").read_text().splitlines()]
    for name in ("tuned", "untuned")
)
prompts = [sample["inputs"]["inputs_pretokenized"] for sample in eval_data_tuned]
untuned_completions = [sample["prediction"] for sample in eval_data_untuned]
tuned_completions = [sample["prediction"] for sample in eval_data_tuned]
results = pd.DataFrame(data={"prompt": prompts, "base_model": untuned_completions, "tuned_model": tuned_completions})
pd.set_option("display.max_colwidth", None)
results.head(4)

# %% [markdown]
# And a verdict, with its interval. The judge of this small run is the reward that was optimised, which is the weakest
# kind (lesson 6, *judge is reward*): leave `compare` out of the recipe for an independent one. The headline says itself
# how far to trust it: who judged, how often that judge is right, and whether a rule as simple as *the shorter wins*
# would have judged as well.

# %%
run = preferent.Run(RUN)
print(run.headline())

# %% [markdown]
# ## The same as one command
#
# A pipeline is a way to *call* `preferent`, nothing more. The same parameters, saved as a file, are a recipe, and
# `preferent run my.yaml` is the whole pipeline. How many of the weights will differ?

# %%
difference_guess = predict("What is the largest difference between a weight of both policies?", 0.001)

# %%
# Run
recipe = {key: value for key, value in parameter_values.items() if key != "recipe"} | yaml.safe_load(RECIPE)
Path("my.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
loaded = preferent.load_recipe("my.yaml")
straight = small_world.run(loaded.recipe, Path("straight"))  # preferent run my.yaml --out straight

from safetensors.numpy import load_file

one, other = (load_file(folder / "policy/model/model.safetensors") for folder in (RUN, straight.folder))
largest = max(float(np.abs(one[name] - other[name]).max()) for name in one)
difference_guess.compare(largest)
assert set(one) == set(other) and largest == 0
assert (RUN / "policy/metrics.jsonl").read_bytes() == (straight.folder / "policy/metrics.jsonl").read_bytes()
print(Path("my.yaml").read_text())

# %% [markdown]
# ## What Google's pipeline does differently
#
# The components of Google Cloud are installed in this environment, so that we can look instead of believing. Compiled,
# a pipeline is a document that says which container gets which parameter.

# %%
from google_cloud_pipeline_components.preview import llm as google

from preferent.kubeflow import infer_pipeline

documents = {}
for maker, functions in (
    ("Google", (google.rlhf_pipeline, google.infer_pipeline)),
    ("here", (rlhf_pipeline, infer_pipeline)),
):
    for name, function in zip(("rlhf", "infer"), functions, strict=True):
        path = f"{maker}_{name}.yaml"
        compiler.Compiler().compile(pipeline_func=function, package_path=path)
        documents[maker, name] = yaml.safe_load(Path(path).read_text().split("\n---\n")[0])

parameters = {
    maker: set(documents[maker, "rlhf"]["root"]["inputDefinitions"]["parameters"]) for maker in ("Google", "here")
}
print("parameters of rlhf_pipeline only there:", sorted(parameters["Google"] - parameters["here"]) or "none")
print("parameters of rlhf_pipeline only here: ", sorted(parameters["here"] - parameters["Google"]))
assert parameters["Google"] < parameters["here"]


def readers(document: dict, parameter: str) -> int:
    """Return how many tasks at the top of a pipeline read one of its parameters."""
    top = document["root"]["dag"]["tasks"].values()
    asked = [task.get("inputs", {}).get("parameters", {}).values() for task in top]
    return sum(any(source.get("componentInputParameter") == parameter for source in sources) for sources in asked)


closed = [line for line in Path("Google_rlhf.yaml").read_text().splitlines() if "vertex-ai-restricted" in line]
print(f"\nclosed images: {len(closed)} lines of Google's pipeline name one, for instance\n {closed[0].strip()[:100]}")

# %% [markdown]
# **One of its parameters is read by no task.** `infer_pipeline` takes a `model_checkpoint`, the tuned model that is to
# answer. How many tasks of Google's pipeline read it?

# %%
readers_guess = predict("How many tasks of Google's infer_pipeline read model_checkpoint?", 1)

# %%
# Run
read = {maker: readers(documents[maker, "infer"], "model_checkpoint") for maker in ("Google", "here")}
print("tasks that read model_checkpoint:", read)
readers_guess.compare(read["Google"], "tasks")
assert read["Google"] == 0 < read["here"]

# %% [markdown]
# So whoever hands a tuned model to Google's `infer_pipeline` of this version gets the answers of the *untuned* one,
# and no error. A second look: the fixed numbers. What the course cannot choose stands in the compiled
# document: as a constant, or as the default of an inner pipeline that the outer one does not hand on.

# %%
google_rlhf, fixed = documents["Google", "rlhf"], {}
for part in ("reward-model-graph", "reinforcement-learning-graph"):
    handed = google_rlhf["root"]["dag"]["tasks"][part]["inputs"]["parameters"]
    known = google_rlhf["components"][f"comp-{part}"]["inputDefinitions"]["parameters"]
    for name in ("batch_size", "lora_dim", "reward_lora_dim"):
        if name in known:
            constant = name in handed
            value = handed[name]["runtimeValue"]["constant"] if constant else known[name]["defaultValue"]
            fixed[part, name] = value
            print(f"{part:29} {name:15} {value:3g}  {'constant' if constant else 'default that nothing overrides'}")
assert {value for (_, name), value in fixed.items() if name == "batch_size"} == {64}
assert not {name for _, name in fixed} & parameters["Google"], "the user of the pipeline can set none of them"
print("and here: recipe='ppo: {batch_size: 128}'")

# %% [markdown]
# ## Up the ladder: Llama 2 7B on one GPU
#
# The same recipe with `large_model_reference: llama-2-7b` is a run of the real model. `preferent plan` says what it
# would need *before* anything is downloaded or started. These are computed numbers, not measurements: nobody has run
# `preferent` on a GPU of that kind yet, and `docs/measured.md` says so.
#
# How much memory do you think tuning a model of seven billion parameters needs at its peak?

# %%
memory_guess = predict("Peak memory of tuning Llama 2 7B with LoRA, in GiB?", 100)

# %%
# Run
big = {
    "large_model_reference": "llama-2-7b",
    "preference_dataset": "preference.jsonl",
    "prompt_dataset": "prompt.jsonl",
    "instruction": "Summarize in less than 50 words",
    "reward_model_train_steps": reward_model_train_steps,
    "reinforcement_learning_train_steps": reinforcement_learning_train_steps,
    "kl_coeff": 0.1,
    "device": "cuda",
    "precision": "bf16",
}
GIB = 1 << 30
plan = preferent.load_recipe(big).plan(memory=80 * GIB)
print(plan)
peak = exercises.peak(plan)
memory_guess.compare(peak, "GiB")
assert "6,738,415,616 parameters" in plan

# %% [markdown]
# The last lines of the table are what the plan chooses by itself: how many answers are decoded at once, and how many
# tokens go through the model together. On a smaller card it chooses less, and the same recipe takes longer. Where that
# is not enough, two fields help: `quantize: nf4` keeps the frozen weights in 4 bits, and `gradient_checkpointing:
# true` computes activations again instead of keeping them.

# %%
for memory, changes in ((24, {}), (12, {}), (12, {"quantize": "nf4", "gradient_checkpointing": True})):
    small = preferent.load_recipe(big | changes).plan(memory=memory * GIB)
    said = [line.strip() for line in small.splitlines() if "fits: at most" in line or "does not fit" in line]
    print(f"{memory} GiB {changes or ''}")
    print("\n".join(f"  {line}" for line in said))
    if not changes:
        assert said[0].startswith("fits") == (memory == 24)

# %% [markdown]
# On several GPUs it is the same recipe with `processes: auto`, a process for each of them; `preferent plan --gpus 8`
# says what each holds. On a cluster the pipeline above runs as it is, with `PipelineJob(…, host=…)`; several nodes
# compute one stage by the manifest that `preferent train-job` prints for Kubernetes. Nobody has run that on a cluster
# yet.
#
# ## Exercises
#
# **1. Steps.** You have 5,000 preferences and want two epochs with the course's batch size. What is
# `reward_model_train_steps`?

# %%
answer = None
exercises.reward_steps(answer)

# %% [markdown]
# **2. Sick or healthy?** In the course's log of its small run, `kl_loss` stays between 0.03 and 0.13 from the first
# step to the last, and `reward` is flat. Which one explains it: `"too many steps"`, `"too few steps"`, `"no
# reference"`?

# %%
course_kl = (0.03, 0.13)
answer = None
exercises.flat_curves(answer)

# %% [markdown]
# **3. A parameter of your own.** Give the text for the parameter `recipe` that makes PPO take batches of 128 answers
# and the reward model learn with LoRA of rank 8.

# %%
answer = None
exercises.recipe_text(answer)

# %%
finish()
