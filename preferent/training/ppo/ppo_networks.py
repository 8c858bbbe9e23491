"""The networks of PPO: policy, reference, critic, and the normalised reward."""

from dataclasses import dataclass
from pathlib import Path

from preferent.config import defaults, stage_graph
from preferent.config.algorithms import algorithm
from preferent.config.recipe import Recipe
from preferent.data import datasets
from preferent.errors import DataError, UsageError
from preferent.models import language_models
from preferent.models.language_models import Policy, Scorer
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.normalization import Normalizer
from preferent.rewards.scoring import CombinedReward, RewardModel
from preferent.rollouts import sampler
from preferent.rollouts.sampler import Prompts, Sampler
from preferent.training import sequences
from preferent.training.sequences import Sequences


@dataclass(frozen=True)
class PPONetworks:
    """The networks that are trained (policy, critic), those that are not (reference, reward), and the pretraining text.

    `normalizer` maps the critic's raw values to the scale of the score.
    """

    policy: Policy
    reference: Policy | None
    critic: Scorer | None
    reward: CombinedReward
    normalizer: Normalizer
    sampler: Sampler
    pretraining: Sequences | None = None


def load(recipe: Recipe, source: Path, inputs: dict[str, Path], out: Path, world: World) -> tuple[PPONetworks, Prompts]:
    """Load policy, reference, reward and critic, encode the training prompts, and fit the scale of the score.

    The scale is fitted once, on answers to some of the prompts, and kept in `score.json`.
    """
    rank = defaults.decided(recipe.ppo.lora_dim)
    policy = language_models.load_policy(source, world, rank, recipe.gradient_checkpointing)
    has_reference = defaults.reference(recipe, "ppo") != "none"
    if recipe.ppo.kl_budget is not None and not has_reference:
        raise UsageError(
            "ppo.kl_budget: with kl_coeff: 0 no reference is loaded, so the KL is not measured; remove one of the two"
        )
    reference = policy.reference() if has_reference else None
    reward = CombinedReward.load(recipe, inputs, world, beside=[policy])
    critic = load_critic(recipe, policy, reward) if algorithm(recipe.ppo).critic else None
    engine = sampler.make(recipe, policy)
    prompts = Prompts.of(datasets.load_prompts(inputs["train"]), policy.tokenizer, recipe)
    if not prompts.ids:
        raise DataError(f"{inputs['train']}: holds no prompt to train on")
    reward = scoring.fit_scale(recipe, policy, reward, engine, prompts, out)
    name = reward.critic_name(policy.tokenizer)
    normalizer = Normalizer() if name is None else reward.scale.normalizer(name)
    files, length = stage_graph.pretraining(recipe), defaults.sequence_length(recipe)
    text = sequences.read(recipe, policy, files, length) if files else None
    return PPONetworks(policy, reference, critic, reward, normalizer, engine, text), prompts


def load_critic(recipe: Recipe, policy: Policy, reward: CombinedReward) -> Scorer:
    """Return a critic that starts from the first reward model with the policy's tokenizer.

    If there is none, it starts from the policy's backbone.
    """
    name = reward.critic_name(policy.tokenizer)
    if name is None:
        return language_models.critic_from_policy(policy, recipe.gradient_checkpointing)
    model = reward.sources[name]
    assert isinstance(model, RewardModel), "a function has no weights to start from"
    return model.scorer.critic()
