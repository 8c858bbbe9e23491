"""Every boolean and every choice of the recipe is run through each stage that depends on it, on a model of two layers.

The list is made from the schema, so a new field of either kind is run too. A value either changes what the stage
makes, or is named in ALIKE, and then it changes no byte. A field that `stage_graph.FIELDS` names for no stage is a
setting of the process, and is run through all of them.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from conftest import SENTENCES

from preferent import files
from preferent.config import recipe, stage_graph
from preferent.config.recipe import Recipe
from preferent.config.sections import Section
from preferent.data import prepare
from preferent.errors import PlatformError
from preferent.evaluation.inference import compare, generate
from preferent.models import language_models, saving
from preferent.models.world import World, has_bf16
from preferent.rewards.normalization import ScoreNormalization
from preferent.runs import metrics
from preferent.training import dpo, ppo, rejection_sampling, reward_model, sft

STAGES: dict[str, Callable[..., None]] = {
    "data": prepare.main,
    "sft": sft.main,
    "reward": reward_model.main,
    "ppo": ppo.main,
    "dpo": dpo.main,
    "rejection": rejection_sampling.main,
    "infer": generate.main,
    "compare": compare.main,
}
METHODS = {"dpo": "dpo", "rejection": "rejection_sampling"}
ALIKE = {"device", "deterministic", "gradient_checkpointing", "processes", "shard", "trust_remote_code", "data.format"}
"""Fields of which no value changes the result; `data.format` names what is found in the rows anyway."""
BY_ALGORITHM = {("ppo.whiten_advantages", True), ("ppo.kl_in", "reward")}
"""What the algorithm `ppo` does where nothing is said."""
MADE = ("model/*.safetensors", "metrics.jsonl", "metrics.json", "*.jsonl", "quality.json", "*/*.jsonl")
TIMES = re.compile(rb'"seconds\w*": [\d.e-]+')
LOSSES = ("rl_loss", "loss", "rank_loss", "loss/imitation")


def kinds(annotation: Any) -> Iterator[Any]:
    """bool and Literal types in an annotation, wherever they stand in it."""
    if annotation is bool or get_origin(annotation) is Literal:
        yield annotation
    else:
        for inner in get_args(annotation):
            yield from kinds(inner)


def choices(section: type[Section] = Recipe, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with each of its values; `0` is the first entry of a list."""
    for name, field in section.model_fields.items():
        inner, listed = recipe.inner_section(field), recipe.listed_section(field)
        if inner is not None or listed is not None:
            yield from choices(inner or listed or Section, f"{before}{name}." if inner else f"{before}{name}.0.")
            continue
        for kind in kinds(field.annotation):
            for value in (False, True) if kind is bool else get_args(kind):
                yield before + name, value


def stages_of(key: str, value: Any) -> list[str]:
    """The stages that depend on a field; `method` is of the stage that tunes by it."""
    if key == "method":
        return [{"reinforcement_learning": "ppo", "rejection_sampling": "rejection"}.get(value, "dpo")]
    plain = key.partition(".0.")[0]
    named = [stage for stage, keys in stage_graph.FIELDS.items() if plain in keys]
    return named or [stage for stage in STAGES if stage != "data"]


CASES = [(key, value, stage) for key, value in choices() for stage in stages_of(key, value)]
PLAIN = {"device", "deterministic", "trust_remote_code"}
"""Settings of the process that are quick to get right: in all stages but `ppo` with the acceptance tests."""
RUN = [
    pytest.param(*case, marks=pytest.mark.acceptance) if case[0] in PLAIN and case[2] != "ppo" else case
    for case in CASES
]


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A deep copy of `values` with one dotted key set."""
    copied = json.loads(json.dumps(values))
    place, (*path, last) = copied, key.split(".")
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    place[last] = value
    return copied


class Bench:
    """Data and models for every stage, and what stages made of the recipes that were run already."""

    def __init__(self, folder: Path, base: Path, tuned: Path) -> None:
        self.folder, self.base, self.tuned = folder, base, tuned
        self.made: dict[str, dict[str, str]] = {}
        words = [word.strip(".,;!") for sentence in SENTENCES for word in sentence.split()]
        pairs = [
            {"input_text": f"{word} {i}", "candidate_0": f" {word}!", "candidate_1": f" {word}.", "choice": i * 7 % 2}
            for i, word in enumerate(words[:40])
        ]
        for i in (3, 11):
            pairs[i]["choice"] = "tie"
        self.write("pairs", pairs[:28])
        self.write("held_out", pairs[28:])
        self.write("prompts", [{"input_text": pair["input_text"]} for pair in pairs[:12]])
        self.write("texts", [{"text": sentence} for sentence in SENTENCES * 6])
        for side in range(2):
            rows = [
                {"inputs": {"inputs_pretokenized": pair["input_text"]}, "prediction": pair[f"candidate_{side}"]}
                for pair in pairs[:3]
            ]
            self.write(f"side_{side}", rows)
        trl = [{"prompt": pair["input_text"], "chosen": " yes", "rejected": f" no {i}"} for i, pair in enumerate(pairs)]
        said = [f"\n\nHuman: Say {word} {i}\n\nAssistant:" for i, word in enumerate(words[:40])]
        self.write("trl", trl)
        self.write("hh", [{"chosen": f"{text} yes", "rejected": f"{text} no"} for text in said])
        sides = [[{"role": "assistant", "content": text}] for text in (" One.", " Two.")]
        asked = [{"messages": [{"role": "user", "content": f"{word} {i}"}]} for i, word in enumerate(words[:40])]
        self.write(
            "openai",
            [{"input": turn, "preferred_output": sides[0], "non_preferred_output": sides[1]} for turn in asked],
        )
        (folder / "turns.jinja").write_text(
            "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
        )
        world = World.of(self.parsed(self.values("reward")))
        for seed, name in enumerate(("reward", "reward-2", "judge"), start=1):
            scorer = language_models.load_scorer(base, world, 0, seed)
            saving.save(scorer, folder / name, dict(scorer.trainable()), "# test\n")

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        files.write_jsonl(self.folder / f"{name}.jsonl", rows)

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def values(self, stage: str) -> dict[str, Any]:
        """The recipe of a stage where nothing is varied."""
        training = {"learning_rate": 1e-2, "lora_dim": 0}
        every = {"batch_size": 8, "validation_every": 3} | training
        judge = {"name": "here", "model": str(self.base), "max_tokens": 4}
        return {
            "large_model_reference": str(self.base),
            "preference_dataset": str(self.file("pairs")),
            "method": METHODS.get(stage, "reinforcement_learning"),
            "precision": "fp32",
            "device": "cpu",
            "threads": 1,
            "prompt_sequence_length": 24,
            "target_sequence_length": 8,
            "reward_model_train_steps": 3,
            "reinforcement_learning_train_steps": 2,
            "sft": {"dataset": str(self.file("texts")), "train_steps": 3, **every},
            "reward": {"members": 2, "normalize_prompts": 8, "missing_eos_score": None, **every},
            "ppo": {"minibatches": 2, "epochs": 2, "critic_learning_rate": 1e-2, "validation_prompts": 4, **every},
            "dpo": {"train_steps": 3, **every},
            "rejection": {"rounds": 2, "prompts": 4, "samples": 2, "train_steps": 2, "batch_size": 4, **training},
            "compare": {"judges": [judge]},
            "data": {"validation_share": 0.2, "test_share": 0.2, "max_dropped": 0.0},
            "chat_template": str(self.folder / "turns.jinja") if stage == "data" else None,
        }

    def parsed(self, values: dict[str, Any]) -> Recipe:
        return recipe.parse(values)[0]

    def inputs(self, stage: str, asked: Recipe, folder: Path) -> dict[str, Path]:
        """What a stage reads; the scale of the score is that of the recipe."""
        members = {name: self.folder / name for name in ("reward", "reward-2")}
        held_out, prompts = self.file("held_out"), self.file("prompts")
        pairs = {"model": self.base, "train": self.file("pairs"), "validation": held_out, "test": held_out}
        tuning = {"model": self.base, "train": prompts, "validation": prompts} | members
        folder.mkdir(parents=True)
        scale = ScoreNormalization.of(asked, 2)
        raw = {name: np.array([0.1, 0.4]) + 0.3 * i for i, name in enumerate(scale.terms[0].members)}
        scale.fit(raw, asked.reward.normalize).write(folder / "score.json")
        chosen = {"score": folder / "score.json"} | members
        answering = {"model": self.tuned, "reference": self.base, "prompts": prompts}
        sides = {"a": self.file("side_0"), "b": self.file("side_1"), "judge": self.folder / "judge"}
        return {
            "data": {},
            "sft": {"model": self.base},
            "reward": pairs,
            "ppo": tuning,
            "dpo": pairs,
            "rejection": tuning,
            "infer": answering | (chosen if asked.infer.best_of > 1 else {}),
            "compare": sides | chosen | {"model.here": self.base},
        }[stage]

    def run(self, stage: str, values: dict[str, Any]) -> dict[str, str]:
        """Hashes of what a stage made of a recipe; equal recipes are run once."""
        key = json.dumps([stage, values])
        if key not in self.made:
            folder, asked = self.folder / f"run-{len([*self.folder.glob('run-*')])}", self.parsed(values)
            STAGES[stage](asked, self.inputs(stage, asked, folder), folder / stage)
            sound(stage, asked, folder / stage)
            paths = sorted({path for place in MADE for path in (folder / stage).glob(place)})
            paths = [path for path in paths if path.name != "timings.jsonl"]
            assert paths
            self.made[key] = {
                str(path.relative_to(folder)): hashlib.sha256(re.sub(TIMES, b"", path.read_bytes())).hexdigest()
                for path in paths
            }
        return self.made[key]


def sound(stage: str, asked: Recipe, out: Path) -> None:
    """The stage is done, its losses are numbers, and sampler and trainer are one policy."""
    assert (out / "DONE").exists()
    rows = metrics.read(out / "metrics.jsonl")
    assert all(math.isfinite(row[name]) for row in rows for name in LOSSES if name in row)
    gaps = [value for row in rows for name, value in row.items() if name.endswith("/sampler_gap")]
    if stage == "ppo":
        assert {row["val/first_ratio"] for row in rows if row["step"]} == {1.0}
        assert len(gaps) == 2 + 2, "at every step, and in both validations"
    if stage == "rejection":
        assert len(gaps) == 3
    assert all(gap <= (1e-5 if asked.precision == "fp32" else 0.1) for gap in gaps), gaps


@pytest.fixture(scope="session")
def bench(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), make_model(hidden_size=64), make_model(seed=3, hidden_size=64))


@pytest.fixture(autouse=True)
def undetermined() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def companions(bench: Bench, key: str, value: Any, stage: str) -> dict[str, Any]:
    """The stage's recipe with what a field needs beside it to mean something."""
    values = bench.values(stage)
    if key == "data.format" and value not in ("auto", "gcpc"):
        return put(values, "preference_dataset", str(bench.file(value)))
    if key == "quantize":  # the reward models of the bench are no adapters, from which a critic could start
        for section in ("sft", "reward", "ppo", "dpo", "rejection"):
            values = put(values, f"{section}.lora_dim", 2)
        return put(values, "ppo.algorithm", "reinforce_plus_plus")
    if key == "reward.combine" and stage == "infer":
        return put(put(values, "infer.best_of", 2), "infer.sampling_strategy", "temperature_sampling")
    return values


def alike(key: str, value: Any) -> bool:
    """Whether the value makes what the stage makes without it."""
    if key == "precision":
        return value == "fp32" or (value == "auto" and not has_bf16(torch.device("cpu")))
    return key in ALIKE or (key, value) in BY_ALGORITHM


@pytest.mark.acceptance
@pytest.mark.parametrize(("key", "value", "stage"), RUN, ids=str)
def test_a_value_works_and_changes_what_it_should(bench: Bench, key: str, value: Any, stage: str) -> None:
    values = companions(bench, key, value, stage)
    varied = put(values, key, value)
    absent = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if key == "device" and absent.get(value):
        with pytest.raises(PlatformError, match=f"device: {value} is set, but torch finds no"):
            bench.run(stage, varied)
        return
    plain, made = bench.run(stage, values), bench.run(stage, varied)
    default = bench.parsed(values) == bench.parsed(varied)
    assert (made == plain) == (default or alike(key, value)), "a value that changes nothing is a dead switch"


def test_the_list_is_the_schemas() -> None:
    """Fields at every depth are on it: of the recipe, of a section that may be off, of a list."""
    keys = {key for key, *_ in CASES}
    assert {"gradient_checkpointing", "sft.schedule", "ppo.kl_in", "compare.judges.0.log_probs"} <= keys
    assert keys >= ALIKE | {key for key, _ in BY_ALGORITHM} and len(keys) >= 24
    assert {stage for *_, stage in CASES} == STAGES.keys()
