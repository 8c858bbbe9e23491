"""Tokenizers with the tokens of several families, and a model that always gives the same token next."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

SPECIAL = (
    *("<pad>", "<s>", "</s>", "<unk>", "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<image>", "<|end|>"),
    *("<|endoftext|>", "<|assistant|>", "<|reserved|>"),
)
NAMED = {
    "bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True}, "unk_token": "<unk>",
    "pad_token": "<pad>", "sep_token": None, "additional_special_tokens": ["<|end|>"],
    "extra_special_tokens": {"image_token": "<image>"}, "add_bos_token": False,
}  # fmt: skip
IDS = {token: id for id, token in enumerate(SPECIAL)}
TURN = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)
"""A template that closes turns with `<end_of_turn>`, as Gemma's."""
GEMMA = {"generation_config": {"eos_token_id": [IDS["</s>"], IDS["<end_of_turn>"]]}}
"""What such a model's configuration says on ends."""


def make_folder(folder: Path, template: str | None = None, **changes: Any) -> Path:
    """Write a byte-level tokenizer with the tokens of several families; `changes` are further JSON files."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate((*SPECIAL, *alphabet))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    for name, values in ({"tokenizer_config": NAMED} | changes).items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def make_model(folder: Path, always: str | None, template: str | None = TURN, **changes: Any) -> Path:
    """Write a small Llama beside such a tokenizer; its weights give the token `always` next, or are random ones."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_folder(folder, template)
    ids = {"bos_token_id": IDS["<s>"], "eos_token_id": IDS["</s>"], "pad_token_id": IDS["<pad>"]}
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256, **ids,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        if always is not None:
            for layer in model.base_model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.get_input_embeddings().weight.fill_(1.0)
            model.lm_head.weight.zero_()
            model.lm_head.weight[IDS[always]] = 9.0
    model.save_pretrained(folder)
    for name, values in changes.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder
