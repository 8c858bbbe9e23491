"""Small real models that many tests share, made once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Tests side by side get a core each, and so do the commands that they start.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

LONGEST = (
    *("test_docs", "test_examples", "test_survival_stages", "test_optimum", "test_kill", "test_label_page"),
    *("test_rounds", "test_main_job", "test_gpu_bench", "test_rejection_sampling", "test_reward_sources"),
    *("test_every_option", "test_mistakes", "test_ppo", "test_pipeline", "test_doctor", "test_compare_runs"),
)
"""The modules that take longest: those of acceptance minutes, the others half a minute."""

SMALL_SIZES = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""The configuration of a small model of any family."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest modules, so that no worker waits at the end while another one works."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


SENTENCES = [
    "The old man walked along the river and sat down by the bridge.",
    "Mary found a silver key under the stone near the house.",
    "A dog ran through the garden, and the children laughed.",
    "In the evening the wind came from the sea and it was cold.",
    "He wrote a letter to his brother, who lived in another town.",
    "She likes apples, bread and cheese; he likes nothing at all!",
]


def quiet_recipe(**values: Any) -> Any:
    """A recipe for tests: one thread, fp32, small sequences, what the test asks for, and as much at once as may be."""
    from preferent.config import defaults, recipe

    base = {
        "large_model_reference": "model",
        "prompt_sequence_length": 32,
        "target_sequence_length": 12,
        "threads": 1,
        "precision": "fp32",
        "device": "cpu",
    }
    return defaults.filled(recipe.parse(base | values)[0], defaults.AT_ONCE)[0]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that makes a small Llama-2-shaped model folder with a SentencePiece-style tokenizer and no pad
    token."""
    from preferent.commands.inference import from_scratch

    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n".join(SENTENCES))

    def make(seed: int = 0, vocab_size: int = 384, hidden_size: int = 32) -> Path:
        folder = tmp_path_factory.mktemp("models") / f"model-{seed}"
        from_scratch.make(
            [text], folder, vocab_size=vocab_size, hidden_size=hidden_size, layers=2, heads=4, key_value_heads=2,
            intermediate_size=2 * hidden_size, max_position_embeddings=128, seed=seed,
        )  # fmt: skip
        return folder

    return make


@pytest.fixture(scope="session")
def tiny(make_model: Callable[..., Path]) -> Path:
    """One small model, for reading only."""
    return make_model()


@pytest.fixture(scope="session")
def make_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that makes a run directory as a run leaves it, around models that differ from the base.

    `rank` is the LoRA rank of policy and reward model (0: full); `sft` puts the base inside the run; `values` are
    recipe fields, and `prompt` the row of its only prompt.
    """
    import numpy as np
    import torch

    from preferent import files
    from preferent.config import recipe, stage_graph
    from preferent.models import language_models, saving
    from preferent.models.world import World
    from preferent.rewards.normalization import ScoreNormalization

    def nudged(network: Any, folder: Path) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in network.trainable().items():
                if parameter.dim() > 1 and not name.startswith("score"):
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        saving.save(network, folder, dict(network.trainable()), "# test\n")

    def make(rank: int = 0, sft: bool = False, prompt: dict[str, Any] | None = None, **values: Any) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "run"
        base = folder / "sft/model" if sft else tiny
        values |= {"preference_dataset": "p.jsonl"} | ({"sft": {"dataset": "s.jsonl"}} if sft else {})
        found = quiet_recipe(large_model_reference=str(tiny), **values)
        world = World.of(found)
        if sft:
            nudged(language_models.load_policy(tiny, world, 0), base)
        nudged(language_models.load_policy(base, world, rank), folder / "policy/model")
        for seed, path in enumerate(stage_graph.rewards(found).values(), start=3):
            nudged(language_models.load_scorer(base, world, rank, seed=seed), folder / path)
        files.write_atomic(folder / "recipe.yaml", recipe.dump(found))
        kept = ScoreNormalization.of(found, found.reward.members)
        kept.fit({name: np.array([0.5]) for term in kept.terms for name in term.members}, "bias").write(
            folder / "policy/score.json"
        )
        files.write_jsonl(folder / "data/prompt/train.jsonl", [prompt or {"input_text": "the cat"}])
        files.write_atomic(folder / "policy/DONE", "")
        return folder

    return make
