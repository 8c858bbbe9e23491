"""Small random models of the shapes that are written as GGUF, with the tokenizers that GGUF files hold."""

import json
from pathlib import Path
from typing import Any

import torch
from conftest import SENTENCES
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from preferent import files
from preferent.commands import rotary_stretch
from preferent.commands.gguf_tokenizer import SPLITS
from preferent.commands.inference import from_scratch

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|turn|>system\nBe kind.<|end|>\n{% endif %}{% for message in messages %}"
    "<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
KINDS = {"llama": "smollm", "qwen2": "qwen2", "mistral": "spm"}
"""The shapes, each with a split of byte-level BPE or `spm`."""


def byte_level(split: str) -> Tokenizer:
    """A byte-level BPE that splits texts in one of the ways that llama.cpp knows."""
    frame = Tokenizer(models.BPE(ignore_merges=SPLITS[split].whole_words))
    backend = json.loads(frame.to_str())
    backend["pre_tokenizer"] = SPLITS[split].pre_tokenizer()
    backend["normalizer"] = {"type": "NFC"} if split == "qwen2" else None
    backend["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    tokenizer = Tokenizer.from_str(json.dumps(backend))
    special = ["<|endoftext|>", "<|turn|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES, "  two  12 345", "\n\n\n  a"] * 3, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """The tokenizer of models from scratch, which is built like that of Llama 2."""
    return from_scratch.train_tokenizer(SENTENCES * 3, 400)


def make(folder: Path, shape: str, split: str, dtype: torch.dtype = torch.bfloat16, **sizes: Any) -> Path:
    """Write a random model of a shape, with a tokenizer, to a folder."""
    spm = split == "spm"
    tokenizer = sentencepiece() if spm else byte_level(split)
    bos, eos, unk, pad = ("<s>", "</s>", "<unk>", "<unk>") if spm else ("<|turn|>", "<|end|>", None, "<|endoftext|>")
    ids = {"bos_token_id": tokenizer.token_to_id(bos), "eos_token_id": tokenizer.token_to_id(eos)}
    ids["pad_token_id"] = tokenizer.token_to_id(pad)
    rows = 8 * -(-tokenizer.get_vocab_size() // 8) + 8
    config = AutoConfig.for_model(shape, **(SIZES | {"vocab_size": rows, "rms_norm_eps": 1e-5} | ids | sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn_like(parameter) * parameter.shape[-1] ** -0.5
            if name.endswith("norm.weight"):
                parameter.data += 1
    model.to(dtype).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": spm, "clean_up_tokenization_spaces": False}
    config |= {role: token for role, token in named.items() if token}
    files.write_json(folder / "tokenizer_config.json", config | {"model_max_length": 512})
    files.write_json(folder / "generation_config.json", ids | {"eos_token_id": _ends(ids["eos_token_id"], spm)})
    if not spm:
        files.write_atomic(folder / "chat_template.jinja", TEMPLATE)
    return folder


def _ends(eos: int, spm: bool) -> int | list[int]:
    """Two ends where the tokenizer has tokens for it."""
    return eos if spm else [eos, 1]


def make_all(place: Path) -> dict[str, Path]:
    """Every shape, each with a tokenizer."""
    made = {f"{shape} with {split}": make(place / shape, shape, split) for shape, split in KINDS.items()}
    sizes = {"rope_parameters": {"rope_theta": 10_000.0, **rotary_stretch.KNOWN[1]}, "max_position_embeddings": 1 << 14}
    made["llama with llama-bpe, stretched"] = make(place / "llama 3", "llama", "llama-bpe", **sizes)
    return made
