"""The vocabulary of Google Cloud Pipeline Components (GCPC) 2.22.0 that has no other home: names of models and of keys.

Source of the models: `resolve_reference_model_metadata` in its `function_based.py`.
"""

from pathlib import Path

from preferent.config import remote_names
from preferent.errors import UsageError

CLOUD_ONLY = (
    "project",
    "location",
    "deploy_model",
    "encryption_spec_key_name",
    "tensorboard_resource_id",
    "accelerator_type",
    "model_display_name",
)
"""Parameters that mean something only on Google Cloud."""

MODELS = {
    "llama-2-7b": ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
    "llama-2-13b": ("meta-llama/Llama-2-13b-hf", "llama-2-7b"),
    "llama-2-7b-chat": ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
    "llama-2-13b-chat": ("meta-llama/Llama-2-13b-chat-hf", "llama-2-7b"),
    "llama-2-70b": ("meta-llama/Llama-2-70b-hf", "llama-2-7b"),
    "llama-2-70b-chat": ("meta-llama/Llama-2-70b-chat-hf", "llama-2-7b"),
}
"""Names of models: the hub repository of each, and the name of what its reward model starts from. GCPC has none of 70B;
they are paired as those of 13B are."""

CLOSED_MODELS = ("t5-small", "t5-large", "t5-xl", "t5-xxl", "text-bison@001", "text-bison@002", "chat-bison@001")
"""Names of models that are not decoder-only or whose weights were never public."""


def resolve_model(reference: str) -> str:
    """Return the hub id (optionally `@revision`) or local path that a model reference means; GCPC's aliases become hub
    ids."""
    name = reference.lower().replace("_", "-")
    if Path(reference).exists():
        return reference
    if name in CLOSED_MODELS:
        raise UsageError(
            f"{reference} is not a decoder-only model with public weights; name one of {', '.join(MODELS)}, "
            f"a hub id or a local path"
        )
    if remote_names.is_remote(reference):
        scheme = reference.partition("://")[0]
        raise UsageError(
            f"{scheme}://…: a model is a folder or a hub id; copy the model here and name the local folder"
        )
    return MODELS[name][0] if name in MODELS else reference
