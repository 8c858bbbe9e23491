"""Our side of `ppo_against_trl.py`: one step of `training.ppo` at a time, through the functions of its own loop.

Counted: sampling, scoring, `assemble` (log-probabilities recomputed, reference, full-vocabulary KL and entropy, values,
advantages) and `learn` (4 epochs of policy and critic). Not counted, as on the other side: logging, validation, saving.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from worker import Line

from preferent.config import defaults, recipe
from preferent.config.recipe import Recipe
from preferent.data.types import Prompt
from preferent.models import language_models
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.normalization import Normalizer, ScoreNormalization
from preferent.rewards.scoring import CombinedReward, RewardModel, RolloutBatch
from preferent.rollouts import sampler
from preferent.rollouts.decoding import Params
from preferent.rollouts.sampler import Prompts
from preferent.training import ppo


def load(
    folder: Path, precision: str, threads: int, answer: int, epochs: int, micro_batch_tokens: int
) -> tuple[Recipe, ppo.PPONetworks, list[np.ndarray], Prompts]:
    """Return the recipe, the networks and the prompts of the folder that `ppo_against_trl.make_models` wrote."""
    ids = [np.array(row, np.int32) for row in json.loads((folder / "prompts.json").read_text())]
    section = {
        "batch_size": len(ids),
        "epochs": epochs,
        "micro_batch_tokens": micro_batch_tokens,
        "lora_dim": 0,
        "learning_rate": 1e-5,
    }
    values = {"large_model_reference": str(folder / "policy"), "precision": precision, "threads": threads}
    values |= {
        "prompt_sequence_length": max(map(len, ids)),
        "target_sequence_length": answer,
        "ppo": section,
        "reward": {"missing_eos_score": None},
    }
    wanted, _ = defaults.filled(defaults.resolve(recipe.parse(values)[0])[0], defaults.AT_ONCE)
    world = World.of(wanted)
    policy = language_models.load_policy(folder / "policy", world, lora_dim=0)
    scorer = language_models.load_scorer(folder / "reward", world)
    return wanted, networks_of(wanted, policy, scorer), ids, Prompts(ids, [""] * len(ids), [Prompt()] * len(ids))


def networks_of(wanted: Recipe, policy: language_models.Policy, scorer: language_models.Scorer) -> ppo.PPONetworks:
    """Return the networks of PPO with a reward of one model, from which the critic starts."""
    reward = CombinedReward({"reward": RewardModel.of(scorer, wanted)}, ScoreNormalization.of(wanted, 1))
    return ppo.PPONetworks(
        policy, policy.reference(), scorer.critic(), reward, Normalizer(), sampler.make(wanted, policy)
    )


def main() -> None:
    line = Line()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--answer", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], required=True)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    asked = parser.parse_args()

    wanted, parts, ids, prompts = load(
        asked.folder, asked.precision, asked.threads, asked.answer, asked.epochs, asked.micro_batch_tokens
    )
    policy, state = parts.policy, ppo.start(wanted, parts)
    params = Params(asked.answer, stop_at_eos=False)
    line.ready(
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        precision=f"{asked.precision} compute, fp32 master weights",
        parameters=sum(p.numel() for p in policy.body.parameters()),
    )
    while True:
        line.wait()
        items = (state.step * len(ids) + np.arange(len(ids))).tolist()
        with line.phase("generation"):
            rollouts = parts.sampler.sample(ids, items, "rollout", state.step, params)
        with line.phase("scoring"):
            rollouts = scoring.score_rollouts(parts.reward, RolloutBatch(rollouts, prompts, policy.tokenizer))
            batch = ppo.assemble(wanted, state, rollouts, parts)
        with line.phase("training"):
            ppo.learn(wanted, state, batch, parts)
        state.step += 1
        line.report(updates=asked.epochs, answer_tokens=sum(len(r.ids) for r in rollouts))


if __name__ == "__main__":
    main()
