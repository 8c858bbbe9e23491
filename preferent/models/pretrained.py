"""Model folders opened by transformers and PEFT: what they hold is looked at before, and no error of theirs gets out.

Memory and time are bounded before weights are read: the model is built without storage first, and compared with what
its files hold.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import AutoConfig, AutoModelForSequenceClassification, DynamicCache, PreTrainedModel, cache_utils

from preferent.config import model_folder, model_reference
from preferent.errors import PlatformError, PreferentError
from preferent.models import adapters, quantization
from preferent.models.world import World
from preferent.runs import interruption

DAMAGED = "the model is damaged, or of a kind that does not fit; copy it again, or use another model"
RECURRENT: Any = getattr(cache_utils, "LinearAttentionCacheLayerMixin", ())
"""The cache layers of transformers that hold a state instead of keys and values."""


@contextlib.contextmanager
def opening(place: Path, advice: str = DAMAGED) -> Iterator[None]:
    """Turn whatever a library raises over a model's files into a `PlatformError` of one sentence.

    What says that memory ran out passes.
    """
    try:
        yield
    except (PreferentError, MemoryError, torch.OutOfMemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        said = " ".join(str(error).split())
        if "can't allocate memory" in said:
            raise
        shown = "".join(letter for letter in f"{said or type(error).__name__}"[:200] if letter.isprintable())
        raise PlatformError(f"{place}: cannot be loaded: {shown}; {advice}") from error


def open_config(base: Path, trust_remote_code: bool) -> Any:
    """Return the configuration of a full model, as transformers reads it."""
    advice = "copy the model again, or if it has its own code, set trust_remote_code: true"
    with interruption.limited(base), opening(base / "config.json", advice):
        return AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)


def open_model(kind: Any, base: Path, config: Any, world: World) -> PreTrainedModel:
    """Load the weights of a full model into the class that `kind` (an auto class of transformers) chooses."""
    stored = model_folder.counted(base)
    with torch.random.fork_rng(devices=[]):
        plan(kind, base, config, world.trust_remote_code, stored)
        torch.manual_seed(0)
        with opening(base):
            body, info = kind.from_pretrained(
                base,
                config=config,
                dtype=world.dtype,
                attn_implementation=world.attention,
                output_loading_info=True,
                trust_remote_code=world.trust_remote_code,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                **quantization.loading(world),
            )
    missing = {name for name in info["missing_keys"] if not name.startswith("score.")}
    missing |= {name for name, *_ in info["mismatched_keys"]}
    if missing:
        raise PlatformError(
            f"{base}: {len(missing)} weights are missing or have another shape than config.json says, "
            f"for example {sorted(missing)[0]}; the model is incomplete: copy it again"
        )
    if world.quantize:
        quantization.settle(body, base)
    else:
        body.to(world.device)
    return body.eval()  # type: ignore[no-any-return]


def plan(kind: Any, base: Path, config: Any, trust_remote_code: bool, stored: int) -> None:
    """Build a model without storage; refuse one that keeps a recurrent state, or needs more than its files hold."""
    with interruption.limited(base), opening(base), torch.device("meta"):
        plan = kind.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
        cache = DynamicCache(config=plan.config)
    kinds = getattr(plan.config.get_text_config(), "layer_types", None)
    if any(isinstance(layer, RECURRENT) for layer in cache.layers) or (plan._is_stateful and not kinds):
        raise PlatformError(model_folder.recurrent_refusal(base, plan.config.model_type))
    described = sum(parameter.numel() for parameter in plan.parameters())
    if described > 2 * stored:
        raise PlatformError(
            f"{base}: config.json describes a model of {described:,} numbers, but its weights are {stored:,}; one of "
            "them is damaged or of another model: copy it again"
        )


def classifies_alike(body: PreTrainedModel, base: Path, config: Any, world: World) -> bool:
    """Return whether the sequence classifier of a causal language model's family has its backbone, and our head."""
    with interruption.limited(base), opening(base), torch.device("meta"):
        plan = AutoModelForSequenceClassification.from_config(
            copy.deepcopy(config), trust_remote_code=world.trust_remote_code
        )
    below = dict(body.base_model.named_parameters())
    own = dict(plan.base_model.named_parameters())
    same = plan.base_model_prefix == body.base_model_prefix and own.keys() == below.keys()
    return same and {name for name, _ in plan.named_parameters()} - {
        f"{plan.base_model_prefix}.{name}" for name in own
    } == {f"{adapters.HEAD}.weight"}


def open_adapter(body: PreTrainedModel, source: Path, base: Path) -> PeftModel | None:
    """Put the adapter of a folder on its base; None if the folder is the base itself."""
    if source == base:
        return None
    model_folder.require_weights(source)
    names = set(model_folder.header(source / model_folder.ADAPTER_WEIGHTS))
    with interruption.limited(source), opening(source), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        peft = PeftModel.from_pretrained(body, source, is_trainable=False, autocast_adapter_dtype=False)
        read = {*get_peft_model_state_dict(peft, save_embedding_layers=False), *peft.state_dict()}
    if unread := sorted(names - read):
        raise PlatformError(f"{source}: {len(unread)} of its weights fit nothing in {base}, for example {unread[0]}")
    return peft


def join_adapter(peft: PeftModel, adapter: str, source: Path) -> None:
    """Put the adapter of a folder, with its head for scores, beside those that a backbone has."""
    model_folder.require_weights(source)
    with interruption.limited(source), opening(source):
        config: Any = PeftConfig.from_pretrained(str(source))
        adapters.add(peft, adapter, replace(config, modules_to_save=[adapters.HEAD], inference_mode=True))
        weights = load_peft_weights(str(source), device="cpu")
        set_peft_model_state_dict(peft, weights, adapter_name=adapter)
        own = get_peft_model_state_dict(peft, adapter_name=adapter, save_embedding_layers=False)
    if different := sorted(set(own) ^ set(weights)):
        first = different[0]
        raise PlatformError(f"{source}: {len(different)} of its weights are missing or fit nothing, such as {first}")


def require_rows(body: PreTrainedModel, source: Path, size: int) -> None:
    """Refuse a tokenizer of `size` ids that has more of them than the embeddings have rows."""
    embeddings: Any = body.get_input_embeddings()
    model_folder.require_rows(source, size, embeddings.weight.shape[0])


def base_of(source: Path) -> Path:
    """Return the folder of the full model in a model's folder, or below an adapter, after a look into both."""
    base = model_reference.examine(source)
    model_folder.require_weights(source)
    model_folder.require_weights(base)
    return base
