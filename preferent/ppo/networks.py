"""What PPO computes with: policy, reference, critic, and the reward on its scale."""

from dataclasses import dataclass
from pathlib import Path

from preferent import dataset, graph, imitation, model, score
from preferent.error import DataError, UsageError
from preferent.imitation import Sequences
from preferent.model import Policy, Scorer
from preferent.recipe import Recipe
from preferent.recipe.algorithm import algorithm
from preferent.sampler import Local, Prompts, Sampler
from preferent.scale import Normalizer
from preferent.score import Reward
from preferent.world import World


@dataclass(frozen=True)
class Networks:
    """Everything that computes: what learns (policy, critic), what judges it (reference, reward), and the text that it
    should not forget; `normalizer` puts the critic's numbers on the scale of the score."""

    policy: Policy
    reference: Policy | None
    critic: Scorer | None
    reward: Reward
    normalizer: Normalizer
    sampler: Sampler
    pretraining: Sequences | None = None


def load(recipe: Recipe, source: Path, inputs: dict[str, Path], out: Path, world: World) -> Networks:
    """Load policy, reference, reward and critic, and fit the score's scale once (kept in `score.json`)."""
    rank = model.lora_dim(recipe.ppo.lora_dim, source, 1, world)
    policy = model.load_policy(source, world, rank, recipe.gradient_checkpointing)
    free_reference = policy.peft is not None
    if recipe.kl_coeff == 0 and recipe.ppo.kl_budget is not None and not free_reference:
        raise UsageError(
            "ppo.kl_budget: with kl_coeff: 0 no reference is loaded, so there is no KL to hold; drop one of them"
        )
    reference = policy.reference() if recipe.kl_coeff > 0 or free_reference else None
    reward = Reward.load(recipe, inputs, world)
    critic = load_critic(recipe, source, policy, reward, rank) if algorithm(recipe.ppo).critic else None
    sampler = Local(policy, recipe.seed, recipe.sampler.rows)
    prompts = Prompts.of(dataset.load_prompts(inputs["train"]), policy, recipe)
    if not prompts.ids:
        raise DataError(f"{inputs['train']}: holds no prompt to train on")
    reward = score.fitted(recipe, policy, reward, sampler, prompts, out)
    name = reward.critic_name(policy.tokenizer)
    normalizer = Normalizer() if name is None else reward.scale.normalizer(name)
    text = imitation.read(recipe, policy, graph.pretraining(recipe)) if graph.pretraining(recipe) else None
    return Networks(policy, reference, critic, reward, normalizer, sampler, text)


def load_critic(recipe: Recipe, source: Path, policy: Policy, reward: Reward, rank: int) -> Scorer:
    """A critic that starts from the first reward model that reads the policy's tokens; from the policy's backbone where
    none does."""
    name = reward.critic_name(policy.tokenizer)
    if name is None:
        return model.critic_from_policy(source, policy.world, rank, recipe.gradient_checkpointing)
    return reward.sources[name].scorer.critic()
