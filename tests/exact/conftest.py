"""A small model whose answers are of every length."""

import shutil
from pathlib import Path

import pytest
from conftest import quiet_recipe


@pytest.fixture(scope="session")
def ending(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with the end token's output row made long, so that it is now and then the likeliest."""
    import torch

    from preferent.models import language_models, saving
    from preferent.models.world import World

    folder = tmp_path_factory.mktemp("models") / "ending"
    shutil.copytree(tiny, folder)
    policy = language_models.load_policy(folder, World.of(quiet_recipe()), lora_dim=0)
    with torch.no_grad():
        policy.body.get_output_embeddings().weight[policy.tokenizer.eos_id] *= 10
    saving.save(policy, folder.with_name("ended"), policy.trainable(), "# test\n")
    return folder.with_name("ended")
