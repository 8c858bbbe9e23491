"""What the open fields of a recipe become once the models are known: the one place that holds these values.

A field that is null in a recipe and means "choose for me" is open. `resolve` gives it a value; whoever works after that
reads values only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from preferent.config.algorithms import algorithm
from preferent.config.gcpc_names import MODELS
from preferent.config.recipe import Recipe, parse
from preferent.config.sections import DPOSection, PPOSection, RejectionSection, RewardSection, SftSection
from preferent.errors import UsageError

Value = TypeVar("Value")

LARGE = 200_000_000
"""Parameters above which a model is tuned by a LoRA adapter; a smaller one learns with every weight."""
LORA_RATE = 1e-4
"""Learning rate of LoRA adapters and of the critic beside them."""
CRITIC_RATE = 5e-6
"""Learning rate of a critic beside a policy of which every weight learns."""


class Tuning(NamedTuple):
    """How a section trains: the LoRA rank of a large model, and the learning rate where every weight learns."""

    rank: int
    full_rate: float


TUNING = {
    "sft": Tuning(4, 1e-5),
    "reward": Tuning(4, 1e-5),
    "ppo": Tuning(1, 1e-6),
    "dpo": Tuning(4, 1e-6),
    "rejection": Tuning(4, 1e-5),
}
"""The sections that train, by their names in the recipe."""

AT_ONCE = {
    **{f"{section}.micro_batch_tokens": 4096 for section in (*TUNING, "compare")},
    "sampler.rows": 256,
    "sampler.prefill_tokens": 16384,
}
"""How much is computed at once, and the most that is chosen: each stage chooses by its device's memory when it begins
(`preferent.runs.memory_choice`)."""


def resolve(recipe: Recipe, policy: int | None = None, reward: int | None = None) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe with its open fields filled in, and the values that were filled in, by dotted key.

    `policy` and `reward` count the parameters of the model to tune and of the one that the reward model starts from.
    Where one is None, the LoRA ranks of its sections, and learning rates that follow from them, stay open. So does
    `AT_ONCE`, which each stage chooses for itself.
    """
    resolved, by_default = filled(recipe, _defaults(recipe, policy, reward))
    _refuse_full_tuning(resolved)
    return resolved, by_default


def filled(recipe: Recipe, defaults: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe with those of its fields that are open and in `defaults` filled in, and what was filled in."""
    values = recipe.model_dump(mode="json")
    by_default: dict[str, Any] = {}
    for key, default in defaults.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part] or {}
        if default is not None and section.get(name, default) is None:
            section[name] = by_default[key] = default
    return parse(values)[0], by_default


def fully_tuned(recipe: Recipe) -> list[str]:
    """Return the fields of this run's sections that train every weight."""
    tuning = {"reinforcement_learning": "ppo", "rejection_sampling": "rejection"}.get(recipe.method, "dpo")
    learns = recipe.preference_dataset is not None and (tuning != "dpo" or recipe.compare.judge == "independent")
    ranks = {
        "sft": recipe.sft and recipe.sft.lora_dim,
        "reward": recipe.reward.lora_dim if learns else None,
        tuning: getattr(recipe, tuning).lora_dim,
    }
    return [f"{name}.lora_dim" for name, rank in ranks.items() if rank == 0]


def _refuse_full_tuning(recipe: Recipe) -> None:
    """Refuse 4-bit weights where a section of this run trains every weight."""
    full = fully_tuned(recipe)
    if recipe.quantize and full:
        raise UsageError(
            f"quantize: {recipe.quantize} is for frozen weights, but with {' and '.join(full)} 0 (the default below "
            f"{LARGE // 10**6}M parameters) every weight is trained; set {full[0]} above 0, or drop quantize"
        )


def _defaults(recipe: Recipe, policy: int | None, reward: int | None) -> dict[str, Any]:
    """Return what each field that can be open would be if it were, by dotted key; None where that is not known."""
    ppo = algorithm(recipe.ppo)
    defaults: dict[str, Any] = {
        "reward_model_reference": _paired(recipe),
        "ppo.samples_per_prompt": ppo.samples,
        "ppo.epochs": ppo.epochs,
        "ppo.kl_in": ppo.kl_in,
        "ppo.whiten_advantages": ppo.whiten,
        "ppo.clip_range_high": recipe.ppo.clip_range,
        "compare.judge_seed": judge_seed(recipe),
    }
    sections: dict[str, SftSection | RewardSection | PPOSection | DPOSection | RejectionSection] = {
        "reward": recipe.reward,
        "ppo": recipe.ppo,
        "dpo": recipe.dpo,
        "rejection": recipe.rejection,
    }
    if recipe.sft is not None:
        sections["sft"] = recipe.sft
        defaults["sft.sequence_length"] = sequence_length(recipe)
    for name, section in sections.items():
        rank = section.lora_dim
        if rank is None:
            rank = _rank(TUNING[name], reward if name == "reward" else policy)
        defaults[f"{name}.lora_dim"] = rank
        defaults[f"{name}.learning_rate"] = _rate(rank, TUNING[name].full_rate)
        if name == "ppo":
            defaults["ppo.critic_learning_rate"] = _rate(rank, CRITIC_RATE)
    return defaults


def _rank(tuning: Tuning, parameters: int | None) -> int | None:
    return None if parameters is None else tuning.rank if parameters > LARGE else 0


def _rate(rank: int | None, full_rate: float) -> float | None:
    return None if rank is None else LORA_RATE if rank else full_rate


def decided(value: Value | None) -> Value:
    """Return the value of a field that `resolve` has filled in."""
    assert value is not None, "a stage resolves its recipe before it reads it"
    return value


def reward_reference(recipe: Recipe) -> str:
    """Return the model that the reward model starts from: the recipe's, GCPC's pairing, or the model to tune."""
    return recipe.reward_model_reference or _paired(recipe) or recipe.large_model_reference


def _paired(recipe: Recipe) -> str | None:
    """Return the name of the smaller model that GCPC pairs with the model to tune; None where it is that model."""
    name = recipe.large_model_reference.lower().replace("_", "-")
    if name not in MODELS or Path(recipe.large_model_reference).exists() or MODELS[name][1] == name:
        return None
    return MODELS[name][1]


def judge_seed(recipe: Recipe) -> int:
    """Return the seed of the reward model that judges."""
    return recipe.seed + 1 if recipe.compare.judge_seed is None else recipe.compare.judge_seed


def sequence_length(recipe: Recipe) -> int:
    """Return the tokens of a packed sequence of plain text where none are asked for: a prompt and an answer."""
    return recipe.prompt_sequence_length + recipe.target_sequence_length


def reference(recipe: Recipe, stage: str) -> Literal["none", "shared", "copy"]:
    """Say how stage `ppo`, `rejection` or `dpo` holds the reference while the policy learns.

    `shared`: it is the policy without its adapter, or before it learns, and takes no memory; `copy`: a second model.
    """
    if stage == "dpo":
        return "none" if recipe.method == "dpo" and recipe.dpo.loss == "reference_free" else "shared"
    if (recipe.ppo if stage == "ppo" else recipe.rejection).lora_dim:
        return "shared"
    return "copy" if recipe.kl_coeff > 0 else "none"
