"""The exercises of lesson 3."""

import re

import yaml
from lesson import Wrong, exercise

from preferent.config import recipe
from preferent.errors import PreferentError


def peak(plan: str) -> float:
    """Return the peak of all stages that a plan names, in GiB."""
    return float(re.findall(r"at most ([\d.]+) GiB of", plan)[0])


@exercise
def reward_steps(answer: int) -> None:
    """Check the steps of two epochs of 5,000 pairs."""
    if answer == 2 * 5000:
        raise Wrong("that is the number of rows seen; a step takes 64 of them.")
    if answer == 79:
        raise Wrong("that is one epoch.")
    if answer != 158:
        raise Wrong("rows divided by the batch size, rounded up, times the epochs.")


@exercise
def flat_curves(answer: str) -> None:
    """Check what explains a KL that does not rise."""
    if answer == "too many steps":
        raise Wrong("more steps take a policy further away from its base, not less far.")
    if answer == "no reference":
        raise Wrong("without a reference there would be no KL at all.")
    if answer != "too few steps":
        raise Wrong("answer with one of the three texts.")


@exercise
def recipe_text(answer: str) -> None:
    """Check a text of recipe fields."""
    if not isinstance(answer, str):
        raise Wrong("answer with a text, as RECIPE is one.")
    try:
        fields = yaml.safe_load(answer)
        read = recipe.parse({"large_model_reference": "m", "preference_dataset": "p.jsonl", **fields})[0]
    except (yaml.YAMLError, PreferentError, TypeError) as error:
        raise Wrong(f"preferent would refuse it: {error}") from None
    if read.ppo.batch_size != 128:
        raise Wrong(f"PPO would take batches of {read.ppo.batch_size}.")
    if read.reward.lora_dim != 8:
        raise Wrong(f"the reward model's rank would be {read.reward.lora_dim}.")
