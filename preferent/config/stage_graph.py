"""The stages of a run as data: how each is called, what it reads and writes, which recipe fields it obeys."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from preferent.config.defaults import AT_ONCE, judge_seed, reward_reference
from preferent.config.gcpc_names import resolve_model
from preferent.config.recipe import Recipe, names
from preferent.config.sections import SftSection, paths
from preferent.errors import UsageError

FREE = ("data.max_dropped", *AT_ONCE)
"""Fields that change memory, speed or patience and no result: no stage depends on them, a run goes on with others."""


_SECTIONS = {name.rpartition(".")[0] for name in names()}
_LEAVES = [name for name in names() if name not in _SECTIONS]


def _expand(*keys: str) -> tuple[str, ...]:
    """Return every field of the named sections, dotted, without those that are free."""
    return tuple(
        name for name in _LEAVES if name not in FREE and any(name == key or name.startswith(key + ".") for key in keys)
    )


_TEXT = (
    *("seed", "instruction", "chat_template_kwargs", "prompt_sequence_length", "target_sequence_length"),
    *("precision", "quantize"),
)

_LIMITS = ("reward.clip", "reward.overlong_tokens", "reward.overlong_penalty", "reward.missing_eos_score")
"""What is done to a normalised score."""
_SCORE = (
    "reward.normalize",
    "reward.combine",
    "reward.variance_coeff",
    "reward.sources",
    *_LIMITS,
    "reward.normalize_prompts",
)
"""What makes a score of an answer."""
_OPTIMISED = ("reward.sources", "reward.combine", "reward.variance_coeff")
"""Which reward it is; its scale is in a file."""

FIELDS: dict[str, tuple[str, ...]] = {
    "data": _expand(
        "seed",
        "preference_dataset",
        "prompt_dataset",
        "eval_dataset",
        "continues",
        "data",
        "compare.judge",
        "compare.judge_share",
    ),
    "sft": _expand(*_TEXT, "optimizer", "sft", "data.columns"),
    "reward": tuple(
        name
        for name in _expand(
            *_TEXT, "optimizer", "reward_model_train_steps", "reward_model_learning_rate_multiplier", "reward"
        )
        if name not in (*_SCORE, "reward.members")
    ),
    "ppo": _expand(
        *_TEXT,
        *("optimizer", "kl_coeff"),
        "reinforcement_learning_train_steps",
        "reinforcement_learning_rate_multiplier",
        *_SCORE,
        "ppo",
        "sampler.temperature",
    ),
    "dpo": _expand(*_TEXT, "optimizer", "method", "kl_coeff", "dpo", "sampler.temperature"),
    "rejection": _expand(
        *_TEXT,
        *("optimizer", "kl_coeff"),
        *_SCORE,
        "rejection",
        "ppo.validation_prompts",
        "sampler.temperature",
    ),
    "infer": _expand(*_TEXT, "infer", "sampler", *_OPTIMISED),
    "compare": _expand(*_TEXT, "compare.judge", "compare.headline", "compare.judges", *_OPTIMISED),
    "report": _expand("report"),
}
"""What each stage depends on, as dotted keys for `recipe.pick`. Models and data are inputs: their content counts."""


def fields(stage: str, recipe: Recipe) -> tuple[str, ...]:
    """Return the fields that a stage of this recipe depends on: `infer` on the limits of a score only where it chooses
    by scores."""
    chooses = stage == "infer" and recipe.infer.best_of > 1
    return (*FIELDS[stage], *_LIMITS) if chooses else FIELDS[stage]


EXTENDABLE: dict[str, tuple[str, ...]] = {
    "sft": ("sft.train_steps",),
    "reward": ("reward_model_train_steps",),
    "ppo": ("reinforcement_learning_train_steps",),
    "dpo": ("dpo.train_steps",),
    "rejection": ("rejection.rounds",),
}
"""Fields of which a larger value goes on with a finished stage."""

MEMBER = re.compile(r"reward(-([2-9]|[1-9]\d+))?")
FOREIGN = re.compile(r"reward\.\w+")

INPUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data": ((), ()),
    "sft": (("model",), ()),
    "reward": (("model", "train", "validation", "test"), ()),
    "ppo": (("model", "train", "validation"), ("reward",)),
    "dpo": (("model", "train", "validation", "test"), ()),
    "rejection": (("model", "train", "validation"), ("reward",)),
    "infer": (("model", "prompts"), ("reference", "reward", "score")),
    "compare": (("a", "b"), ("judge", "reward", "score", "prompts", "people", "original")),
    "report": (("run",), ()),
}
"""The inputs that each stage must have and those that it may have; with `reward` also further members, `reward-2`,
`reward-3`, …, and reward models that the recipe names, `reward.NAME`; `compare` reads further sides, `side.NAME`, and
models that judge, `model.NAME`."""
FURTHER = re.compile(r"(side|model)\.[\w-]+")


def members(inputs: Iterable[str]) -> list[str]:
    """Return the names among `inputs` of the reward models that the run trained: `reward`, `reward-2`, `reward-3`, …"""
    numbers = {1 if name == "reward" else int(name[7:]) for name in inputs if MEMBER.fullmatch(name)}
    return [_member(number) for number in sorted(numbers)]


def foreign(recipe: Recipe) -> dict[str, str]:
    """Return the reward models that the recipe names, by input name."""
    return {f"reward.{part.name}": part.source for part in recipe.reward.parts if part.kind == "model"}


def is_reward(name: str) -> bool:
    """Return whether an input of this name is a reward model."""
    return bool(MEMBER.fullmatch(name) or FOREIGN.fullmatch(name))


def reads(stage: str, name: str) -> bool:
    """Return whether a stage reads an input of this name."""
    required, optional = INPUTS[stage]
    if name in required + optional:
        return True
    return ("reward" in optional and is_reward(name)) or (stage == "compare" and bool(FURTHER.fullmatch(name)))


def trains(recipe: Recipe) -> bool:
    """Return whether what this run trains on preferences is the reward, or a part of it."""
    return any(part.kind == "reward" for part in recipe.reward.parts)


def _member(number: int) -> str:
    return "reward" if number == 1 else f"reward-{number}"


@dataclass(frozen=True)
class Task:
    """One command of a run.

    `inputs` are files and folders below the run directory, `outside` models that the user named (a path, an alias, a
    hub id), `files` data that the recipe names, under what the stage calls them less a number. `outputs` are below
    `folder`, which is below the run directory. `settings` are `--set` of this command alone. `optional` are inputs that
    people may have made below the run directory: read where they are there.
    """

    name: str
    stage: str
    folder: str
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    outside: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    optional: Mapping[str, str] = field(default_factory=dict)

    def at(self, root: Path) -> "Task":
        """Return the task as it is in a run directory: with those of its optional inputs that are there."""
        there = {name: path for name, path in self.optional.items() if (root / path).exists()}
        return replace(self, inputs={**self.inputs, **there}, optional={})

    def command(self, root: str) -> tuple[str, ...]:
        """Return the words after `preferent` that do this task in the run directory `root`."""
        verb = ("data", "prepare") if self.stage == "data" else (self.stage,)
        inside = {name: os.path.normpath(os.path.join(root, path)) for name, path in self.inputs.items()}
        words = [*verb, "--recipe", os.path.join(root, "recipe.yaml")]
        for setting in self.settings:
            words += ["--set", setting]
        for name, path in {**self.outside, **inside}.items():
            words += ["--in", f"{name}={path}"]
        return (*words, "--out", os.path.normpath(os.path.join(root, self.folder)))


def build(recipe: Recipe) -> list[Task]:
    """Return the tasks of a run, in an order in which each finds its inputs."""
    if recipe.preference_dataset is None and trains(recipe):
        raise UsageError("recipe: preference_dataset is missing: name the files of preferences, or give reward.sources")
    if recipe.preference_dataset is None and direct(recipe):
        raise UsageError(f"recipe: method: {recipe.method} learns from preferences: name preference_dataset")
    if recipe.preference_dataset is None and recipe.prompt_dataset is None:
        raise UsageError("recipe: prompt_dataset is missing: there are no preferences to take the prompts from")
    if recipe.infer.best_of > 1 and recipe.reward.sources is None and direct(recipe):
        raise UsageError(
            f"recipe: infer.best_of: method {recipe.method} has no reward to choose by; give reward.sources"
        )
    tasks = [_data(recipe)]
    if recipe.sft is not None:
        tasks.append(_sft(recipe, recipe.sft))
    if rewards(recipe):
        tasks += _rewards(recipe)
    if judged(recipe):
        tasks.append(_reward(recipe, "judge", "judge", (f"seed={judge_seed(recipe)}",)))
    tasks += [_tuning(recipe), *_infer(recipe), _compare(recipe), _report()]
    template = {"chat_template ": paths(recipe.chat_template)} if recipe.chat_template else {}
    return [
        replace(task, files={**task.files, **template}) if "chat_template_kwargs" in FIELDS[task.stage] else task
        for task in tasks
    ]


def chat_template(recipe: Recipe) -> dict[str, Path]:
    """Return the file of the recipe's chat template, by the name that stages which read conversations give it."""
    return {} if recipe.chat_template is None else {"chat_template 0": Path(recipe.chat_template)}


def judged(recipe: Recipe) -> bool:
    """Return whether a second reward model is trained to judge."""
    return recipe.compare.judge == "independent" and recipe.preference_dataset is not None


def _data(recipe: Recipe) -> Task:
    outputs = [f"prompt/{group}.jsonl" for group in ("train", "validation", "test")]
    if recipe.preference_dataset is not None:
        groups = ("train", *(("judge",) if judged(recipe) else ()), "validation", "test")
        outputs = [f"preference/{group}.jsonl" for group in groups] + outputs
    named = ("preference_dataset", "prompt_dataset", "eval_dataset")
    files = {f"{name}.": paths(getattr(recipe, name)) for name in named} | {"continues.": dealt(recipe)}
    return Task("data", "data", "data", {}, (*outputs, "counts.json"), files=files)


def dealt(recipe: Recipe) -> list[str]:
    """Globs of the files that say which part each prompt of the earlier rounds was in."""
    return [f"{folder}/data/{kind}/*.jsonl" for folder in recipe.continues for kind in ("preference", "prompt")]


def rounds(recipe: Recipe) -> dict[str, str]:
    """Return the runs that this one continues, by what their policies are called."""
    return {f"round-{number}": folder for number, folder in enumerate(recipe.continues, start=1)}


def _sft(recipe: Recipe, section: SftSection) -> Task:
    model = {"model": recipe.large_model_reference}
    return Task("sft", "sft", "sft", {}, ("model",), model, files={"dataset ": paths(section.dataset)})


def _base(recipe: Recipe) -> tuple[dict[str, str], dict[str, str]]:
    """Return what PPO starts from, as (inputs, outside)."""
    return ({"model": "sft/model"}, {}) if recipe.sft is not None else ({}, {"model": recipe.large_model_reference})


def _rewards(recipe: Recipe) -> list[Task]:
    """Return every member of the ensemble; each but the first with a seed of its own."""
    others = range(2, recipe.reward.members + 1)
    return [
        _reward(recipe, "reward", "train"),
        *(_reward(recipe, _member(number), "train", (f"seed={recipe.seed + number}",)) for number in others),
    ]


def rewards(recipe: Recipe) -> dict[str, str]:
    """Return the reward models that the run trains to be tuned against, by input name; none where the reward is
    something else, or the preferences themselves."""
    none = not trains(recipe) or direct(recipe)
    return {name: f"{name}/model" for name in ([] if none else map(_member, range(1, recipe.reward.members + 1)))}


def direct(recipe: Recipe) -> bool:
    """Return whether the policy is tuned on the preferences themselves."""
    return recipe.method in ("dpo", "kto")


def _reward(recipe: Recipe, name: str, train: str, settings: tuple[str, ...] = ()) -> Task:
    inputs, outside = _reward_base(recipe)
    outputs = ("model", "quality.json", "mistakes.jsonl")
    return Task(name, "reward", name, inputs | _pairs(train), outputs, outside, settings=settings)


def _pairs(train: str) -> dict[str, str]:
    """Return the files of preferences; those named `train` are learnt from."""
    return {
        "train": f"data/preference/{train}.jsonl",
        "validation": "data/preference/validation.jsonl",
        "test": "data/preference/test.jsonl",
    }


def _reward_base(recipe: Recipe) -> tuple[dict[str, str], dict[str, str]]:
    """Return what the reward model starts from: what the recipe names, GCPC's pairing, else what PPO starts from."""
    reference = reward_reference(recipe)
    same = resolve_model(reference) == resolve_model(recipe.large_model_reference)
    return _base(recipe) if same and recipe.reward_model_reference is None else ({}, {"model": reference})


def _tuning(recipe: Recipe) -> Task:
    """Return the stage that makes the policy; its folder is `policy` whatever the method."""
    inputs, outside = _base(recipe)
    if direct(recipe):
        return Task("dpo", "dpo", "policy", inputs | _pairs("train"), ("model",), outside)
    stage = "ppo" if recipe.method == "reinforcement_learning" else "rejection"
    prompts = {"train": "data/prompt/train.jsonl", "validation": "data/prompt/validation.jsonl"}
    outside = outside | foreign(recipe)
    files = {"ptx ": pretraining(recipe)} if stage == "ppo" else {}
    return Task(
        stage, stage, "policy", inputs | rewards(recipe) | prompts, ("model", "score.json"), outside, files=files
    )


def pretraining(recipe: Recipe) -> list[str]:
    """Return the files of text mixed into PPO's loss; none where it is not."""
    named = recipe.ppo.ptx_dataset or (recipe.sft.dataset if recipe.sft is not None else None)
    return paths(named) if recipe.ppo.ptx_coeff > 0 else []


def _infer(recipe: Recipe) -> list[Task]:
    prompts = {"prompts": "data/prompt/test.jsonl"}
    inputs, outside = _base(recipe)
    reference = {"reference": outside["model"]} if outside else {}
    reference_inside = {"reference": inputs["model"]} if inputs else {}
    several = recipe.infer.best_of > 1
    tuned = {"model": "policy/model"} | prompts | reference_inside
    if several:
        tuned |= rewards(recipe) | {"score": "policy/score.json"}
        reference |= foreign(recipe)
    single = ("infer.best_of=1",) if several else ()
    tasks = [
        Task("infer-base", "infer", "predictions/base", inputs | prompts, ("text.jsonl",), outside, settings=single),
        Task("infer-tuned", "infer", "predictions/tuned", tuned, ("text.jsonl",), reference),
    ]
    if recipe.sft is not None:
        original = {"model": recipe.large_model_reference}
        tasks.append(
            Task("infer-original", "infer", "predictions/original", prompts, ("text.jsonl",), original, settings=single)
        )
    for name, folder in rounds(recipe).items():
        inputs, outside = prompts | reference_inside, {"model": f"{folder}/policy/model"}
        outside |= {key: path for key, path in reference.items() if key == "reference"}
        tasks.append(
            Task(f"infer-{name}", "infer", f"predictions/{name}", inputs, ("text.jsonl",), outside, settings=single)
        )
    return tasks


def _compare(recipe: Recipe) -> Task:
    inputs = {"a": "predictions/tuned/text.jsonl", "b": "predictions/base/text.jsonl"}
    inputs["prompts"] = "data/prompt/test.jsonl"
    if judged(recipe):
        inputs["judge"] = "judge/model"
    outside: dict[str, str] = {}
    if not direct(recipe):
        inputs |= rewards(recipe) | {"score": "policy/score.json"}
        outside = foreign(recipe)
    if recipe.sft is not None:
        inputs["original"] = "predictions/original/text.jsonl"
    inputs |= {f"side.{name}": f"predictions/{name}/text.jsonl" for name in rounds(recipe)}
    outside |= {f"model.{judge.name}": judge.model for judge in recipe.compare.judges if judge.url is None}
    outputs = ("judgments.jsonl", "metrics.json")
    people = {"people": "labels/judgments.jsonl"}
    files = {"template ": templates(recipe)}
    return Task("compare", "compare", "comparison", inputs, outputs, outside, files, optional=people)


def templates(recipe: Recipe) -> list[str]:
    """Return the rubrics that the recipe's judges bring along, each once."""
    return list(dict.fromkeys(judge.template for judge in recipe.compare.judges if judge.template is not None))


def _report() -> Task:
    return Task("report", "report", ".", {"run": "."}, ("report.html",))
