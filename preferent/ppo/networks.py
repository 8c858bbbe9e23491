"""What PPO computes with: prompts as token ids, policy, reference, critic, reward and its normaliser."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preferent import dataset, draw, graph, imitation, model, run
from preferent.error import DataError, UsageError
from preferent.imitation import Sequences
from preferent.model import Policy, Scorer
from preferent.recipe import Recipe
from preferent.recipe.algorithm import algorithm
from preferent.record import Prompt
from preferent.sampler import Local, Params, Sampler
from preferent.score import Ensemble, Normalizer, UserFunction
from preferent.world import World


@dataclass(frozen=True)
class Prompts:
    """Prompts with their token ids and their text as the model sees it."""

    ids: list[np.ndarray]
    texts: list[str]

    @classmethod
    def of(cls, records: Sequence[Prompt], policy: Policy, recipe: Recipe) -> "Prompts":
        limit, instruction = recipe.prompt_sequence_length, recipe.instruction
        ids = [np.asarray(policy.tokenizer.encode_prompt(p, instruction, limit)[0], np.int32) for p in records]
        return cls(ids, [policy.tokenizer.text(p, instruction) for p in records])


@dataclass(frozen=True)
class Networks:
    """Everything that computes: what learns (policy, critic), what judges it (reference, reward), and the text that it
    should not forget."""

    policy: Policy
    reference: Policy | None
    critic: Scorer | None
    reward: Ensemble | UserFunction
    normalizer: Normalizer
    sampler: Sampler
    pretraining: Sequences | None = None


def load(recipe: Recipe, source: Path, inputs: dict[str, Path], out: Path, world: World) -> Networks:
    """Load policy, reference, reward and critic, and fit the score's normaliser once (kept in `score.json`)."""
    rank = model.lora_dim(recipe.ppo.lora_dim, source, 1, world)
    policy = model.load_policy(source, world, rank, recipe.gradient_checkpointing)
    free_reference = policy.peft is not None
    if recipe.kl_coeff == 0 and recipe.ppo.kl_budget is not None and not free_reference:
        raise UsageError(
            "ppo.kl_budget: with kl_coeff: 0 no reference is loaded, so there is no KL to hold; drop one of them"
        )
    reference = policy.reference() if recipe.kl_coeff > 0 or free_reference else None
    reward = load_reward(recipe, inputs, world)
    critic = load_critic(recipe, source, policy, reward, rank, world) if algorithm(recipe.ppo).critic else None
    sampler = Local(policy, recipe.seed, recipe.sampler.rows)
    prompts = Prompts.of(dataset.load_prompts(inputs["train"]), policy, recipe)
    if not prompts.ids:
        raise DataError(f"{inputs['train']}: holds no prompt to train on")
    normalizer = fit_normalizer(recipe, policy, reward, sampler, prompts, out)
    text = imitation.read(recipe, policy, graph.pretraining(recipe)) if graph.pretraining(recipe) else None
    return Networks(policy, reference, critic, reward, normalizer, sampler, text)


def load_reward(recipe: Recipe, inputs: dict[str, Path], world: World) -> Ensemble | UserFunction:
    """What is optimised: the recipe's function, or the mean of the reward models among the inputs."""
    if recipe.ppo.reward is not None:
        return UserFunction.load(recipe.ppo.reward)
    return Ensemble.load([inputs[name] for name in graph.members(inputs)], recipe, world)


def load_critic(
    recipe: Recipe, source: Path, policy: Policy, reward: Ensemble | UserFunction, rank: int, world: World
) -> Scorer:
    """A critic that starts from the first reward model; from the policy's backbone where it cannot."""
    scorer = reward.members[0].scorer if isinstance(reward, Ensemble) else None
    if scorer is None or scorer.tokenizer.fingerprint != policy.tokenizer.fingerprint:
        return model.critic_from_policy(source, world, rank, recipe.gradient_checkpointing)
    return scorer.critic()


def fit_normalizer(
    recipe: Recipe, policy: Policy, reward: Ensemble | UserFunction, sampler: Sampler, prompts: Prompts, out: Path
) -> Normalizer:
    """The normaliser from one answer of the untuned policy to each of some training prompts; read back if it is
    there."""
    path = out / "score.json"
    if path.exists():
        return Normalizer.read(path)
    rows = draw.permutation(recipe.seed, "normalize", 0, len(prompts.ids))[: recipe.ppo.normalize_prompts]
    rollouts = sampler.sample([prompts.ids[i] for i in rows], rows.tolist(), "normalize", 0, rollout_params(recipe))
    raw = reward.score(rollouts, [prompts.texts[i] for i in rows], policy.tokenizer)
    normalizer = Normalizer.fit(np.asarray(raw, np.float64), recipe.reward.normalize)
    run.write_sealed(path, {"bias": normalizer.bias, "gain": normalizer.gain, "prompts": len(rows)})
    return normalizer


def rollout_params(recipe: Recipe) -> Params:
    """Rollouts and validation sample the whole distribution at the recipe's temperature."""
    return Params(recipe.target_sequence_length, recipe.sampler.temperature)
