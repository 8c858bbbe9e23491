"""How much disk the stages of a run take, as formulas over the shapes of its models; symbols as in
`preferent.config.memory_estimate`."""

from preferent.config.algorithms import algorithm
from preferent.config.defaults import decided
from preferent.config.memory_estimate import MASTER, ModelFacts


def disk(facts: ModelFacts, stages: list[str]) -> dict[str, int]:
    """Return the most bytes on disk: checkpoints (master and moments of all that learns, 12 t each with AdamW) and the
    best that each knows (4 t, of the model alone), one more of both while they are written; models in their stored
    dtype; rollouts (25 bytes per token in columns and in plain words)."""
    recipe, shape, scorer = facts.recipe, facts.shape, facts.reward_shape
    ranks = {
        "sft": 0 if recipe.sft is None else decided(recipe.sft.lora_dim),
        "reward": decided(recipe.reward.lora_dim),
        "ppo": decided(recipe.ppo.lora_dim),
        "dpo": decided(recipe.dpo.lora_dim),
        "rejection": decided(recipe.rejection.lora_dim),
    }
    kept = {"checkpoints": 0, "models": 0}
    for stage in stages:
        scores = stage == "judge" or stage.startswith("reward")
        if not scores and stage not in ("sft", "ppo", "dpo", "rejection"):
            continue
        rank, model_shape = ranks["reward" if scores else stage], scorer if scores else shape
        full = model_shape.scorer if scores else model_shape.policy
        trained = model_shape.lora(rank) if rank else full
        has_critic = stage == "ppo" and algorithm(recipe.ppo).critic
        critic = 0 if not has_critic else scorer.lora(ranks["reward"]) if ranks["reward"] else scorer.scorer
        copies = recipe.keep_checkpoints + 1
        best = 0 if stage == "sft" else MASTER * trained
        kept["checkpoints"] += copies * (round((MASTER + facts.moments) * (trained + critic)) + best)
        kept["models"] += 4 * trained if rank and stage != "sft" else full * model_shape.stored
    return kept | ({"rollouts": 25 * rollout_tokens(facts)} if "ppo" in stages else {})


def rollout_tokens(facts: ModelFacts) -> int:
    """Return an upper bound on the tokens of prompts and answers in all rollouts."""
    recipe, section = facts.recipe, facts.recipe.rejection
    if recipe.method == "rejection_sampling":
        return section.rounds * min(section.prompts, facts.prompts["train"]) * section.samples * facts.length
    return recipe.reinforcement_learning_train_steps * recipe.ppo.batch_size * facts.length
