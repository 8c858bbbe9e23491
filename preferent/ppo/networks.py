"""What PPO computes with: policy, reference, critic, reward and its normaliser."""

from dataclasses import dataclass
from pathlib import Path

from preferent import dataset, graph, imitation, model
from preferent.error import DataError, UsageError
from preferent.imitation import Sequences
from preferent.model import Policy, Scorer
from preferent.recipe import Recipe
from preferent.recipe.algorithm import algorithm
from preferent.sampler import Local, Prompts, Sampler
from preferent.score import Ensemble, Normalizer, UserFunction, fit_normalizer, load_reward
from preferent.world import World


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


def load_critic(
    recipe: Recipe, source: Path, policy: Policy, reward: Ensemble | UserFunction, rank: int, world: World
) -> Scorer:
    """A critic that starts from the first reward model; from the policy's backbone where it cannot."""
    scorer = reward.members[0].scorer if isinstance(reward, Ensemble) else None
    if scorer is None or scorer.tokenizer.fingerprint != policy.tokenizer.fingerprint:
        return model.critic_from_policy(source, world, rank, recipe.gradient_checkpointing)
    return scorer.critic()
