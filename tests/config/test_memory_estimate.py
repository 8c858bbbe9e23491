"""The formulas of memory and disk against what torch really allocates."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from transformers import AutoConfig, AutoModelForCausalLM

from preferent.commands import disk_estimate
from preferent.config import defaults, memory_estimate, model_shape
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import Shape
from preferent.models import checkpoint, language_models, llama
from preferent.models.world import World
from preferent.rollouts import cached_decoder
from preferent.rollouts.llama_decoder import LlamaDecoder
from preferent.training.optimizer import Optimizer, Schedule

PROMPTS = {"train": 100, "validation": 10, "test": 10}


def shape_of(folder) -> Shape:
    return Shape.of(json.loads((folder / "config.json").read_text()))


def given_of(shape: Shape, bytes: int = 4, **values) -> ModelFacts:
    recipe = quiet_recipe(preference_dataset="p.jsonl", **values)
    recipe, _ = defaults.resolve(recipe, shape.policy, shape.policy)
    return ModelFacts(recipe, shape, shape, bytes, recipe.prompt_sequence_length, PROMPTS)


def test_llama_2():
    shapes = {name: shape.policy for name, shape in model_shape.LLAMA_2.items()}
    assert shapes["meta-llama/Llama-2-7b-hf"] == shapes["meta-llama/Llama-2-7b-chat-hf"] == 6_738_415_616
    assert shapes["meta-llama/Llama-2-13b-hf"] == shapes["meta-llama/Llama-2-13b-chat-hf"] == 13_015_864_320


def test_parameters(tiny):
    shape, world = shape_of(tiny), World.of(quiet_recipe())
    full, adapted = (language_models.load_policy(tiny, world, rank) for rank in (0, 3))
    assert sum(p.numel() for p in full.trainable().values()) == shape.policy
    assert sum(p.numel() for p in adapted.trainable().values()) == shape.lora(3)
    scorer = language_models.load_scorer(tiny, world, 0, 1)
    assert sum(p.numel() for p in scorer.trainable().values()) == shape.scorer
    assert dataclasses.replace(shape, tied=True).policy == shape.backbone


def test_another_architecture_is_not_guessed():
    assert Shape.of({"model_type": "gpt2", "n_embd": 768}) is None


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations(tiny, precision, rank):
    """Everything that autograd keeps, each storage once, less the parameters, where every state is asked for."""
    scorer = language_models.load_scorer(tiny, World.of(quiet_recipe(precision=precision)), rank, 1)
    own = {p.untyped_storage().data_ptr() for p in scorer.body.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    ids = torch.randint(5, 300, (16, 64))
    rows, columns = torch.arange(16).repeat_interleave(64), torch.arange(64).repeat(16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scorer.states(ids, rows, columns)
    found = sum(size for place, (size, _) in kept.items() if place not in own)
    shape, b = shape_of(tiny), 4 if precision == "fp32" else 2
    three, two = (
        model_shape.kept_activations(
            dataclasses.replace(shape, layers=layers), ids.numel(), len(rows), b, rank > 0, whole=64 if b == 2 else 0
        )
        for layers in (3, 2)
    )
    last_norm = b * ids.numel() * shape.hidden_size
    assert found == pytest.approx(shape.layers * (three - two) + last_norm, rel=0.05)


def test_checkpointing_keeps_less():
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    all_of_it, little = (model_shape.kept_activations(shape, 4096, 512, 2, checkpointing=on) for on in (False, True))
    assert little < 0.15 * all_of_it


def test_kv_cache(tiny):
    policy = language_models.load_policy(tiny, World.of(quiet_recipe()))
    cache, decoder = cached_decoder.new_cache(policy, 20), LlamaDecoder(policy, 3, 20, 100)
    with torch.no_grad():
        policy.hidden(torch.full((3, 5), 9), cache=cache)
        decoder.admit([np.full(5, 9)] * 3)
    found = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.all_keys, layer.all_values))
    assert found == sum(block.nbytes for block in decoder.blocks)
    assert found == model_shape.kv_cache(shape_of(tiny), 3, 20, 4)


def test_optimizer_and_checkpoint(tiny, tmp_path):
    scorer = language_models.load_scorer(tiny, World.of(quiet_recipe(precision="bf16")), 0, 1)
    optimizer = Optimizer(scorer.trainable(), Schedule(1e-3), 1.0)
    scorer.scores(scorer.hidden(torch.full((1, 4), 9))).sum().backward()
    optimizer.step(0)
    held = sum(t.numel() * t.element_size() for t in optimizer.tensors().values())
    shape = shape_of(tiny)
    assert held == pytest.approx(given_of(shape, 2).optimizer(shape.scorer), rel=0.01)
    for step in range(4):
        checkpoint.save(tmp_path / "checkpoints", step, optimizer.tensors(), {}, keep=2)
        checkpoint.save(tmp_path / "best", step, optimizer.weights(), {}, keep=2)
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    told = disk_estimate.disk(given_of(shape, reward={"lora_dim": 0}), ["reward"])["checkpoints"]
    assert told == pytest.approx(stored * 3 / 2, rel=0.05), "one more of each while one is written"
    best = sum(path.stat().st_size for path in (tmp_path / "best").rglob("*.safetensors"))
    assert best == pytest.approx(stored / 4, rel=0.05), "no moments"


def test_lora_shares_backbones():
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    full, lora = (
        memory_estimate.ppo(given_of(shape, 2, ppo={"lora_dim": rank}, reward={"lora_dim": rank})) for rank in (0, 1)
    )
    assert full.parts["reference"] == 2 * shape.policy and lora.parts["reference"] == 0
    assert lora.parts["critic"] < 0.01 * full.parts["critic"]
    assert lora.peak < 0.5 * full.peak
    free = memory_estimate.ppo(given_of(shape, 2, ppo={"lora_dim": 0}, kl_coeff=0))
    assert free.parts["reference"] == 0


def test_every_member_of_an_ensemble_is_held_and_stored():
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    one, three = (given_of(shape, 2, reward={"lora_dim": 0, "members": k}) for k in (1, 3))
    assert memory_estimate.ppo(three).parts["reward"] == 3 * memory_estimate.ppo(one).parts["reward"]
    stored = disk_estimate.disk(three, ["reward", "reward-2", "reward-3"]), disk_estimate.disk(one, ["reward"])
    assert all(stored[0][kind] == 3 * stored[1][kind] for kind in ("checkpoints", "models"))


def test_a_peak_is_what_stays_and_the_largest_phase():
    need = memory_estimate.MemoryNeed(
        "x", {"policy": 5}, {"learn": {"activations": 3, "gradients": 4}, "sample": {"activations": 6}}
    )
    assert need.phase == "learn" and need.peak == memory_estimate.BASELINE + 5 + 7
    assert need.most("activations") == 6 and need.most("policy") == 5 and need.most("KV cache") == 0


def test_smaller_pieces_need_less():
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    small = {"ppo": {"micro_batch_tokens": 256}, "sampler": {"rows": 1}}
    stages = ["sft", "dpo", "ppo", "infer"]
    lots, little = (
        [memory_estimate.need(given_of(shape, 2, sft={"dataset": "t"}, **values), stage) for stage in stages]
        for values in ({}, small)
    )
    assert [need.stage for need in lots] == stages
    assert lots[0].peak == little[0].peak and lots[1].peak == little[1].peak
    assert lots[2].peak > little[2].peak and lots[3].peak > little[3].peak


def test_no_more_rows_than_there_are():
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    given = given_of(shape, 2)
    few = dataclasses.replace(given, prompts={"train": 1, "validation": 1, "test": 2})
    caches = [memory_estimate.infer(one).most("KV cache") for one in (given, few)]
    assert caches[0] == 5 * caches[1]
    assert memory_estimate.ppo(given).most("KV cache") == model_shape.kv_cache(shape, 100, 44, 2), (
        "the normaliser's prompts"
    )
    assert memory_estimate.ppo(few).most("KV cache") == model_shape.kv_cache(shape, 64, 44, 2), "a batch"
    assert given.tokens(10 * given.length + 3, 100) == 10 * given.length
    assert given.tokens(10 * given.length, 4) == 4 * given.length
    assert given.tokens(1, 4) == given.length
    assert np.isclose(disk_estimate.rollout_tokens(given), 1000 * 64 * 44)


def test_what_the_allocator_loses():
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    given = given_of(shape, 4)
    count = model_shape.kept_activations(shape, 100, 10, 4)
    assert given.learning(shape, 100, 10, 0) == round(1.25 * count)
    large = model_shape.kept_activations(shape, 4096, 10, 4)
    assert given.learning(shape, 4096, 10, 0) == large, "large tensors come from the system one by one"
    assert dataclasses.replace(given, on_gpu=True).learning(shape, 100, 10, 0) == count


@pytest.mark.parametrize(
    ("values", "models"),
    [
        ({}, 1),
        ({"ppo": {"lora_dim": 0}}, 2),
        ({"continues": ["runs/one"]}, 2),
        ({"method": "dpo"}, 1),
        ({"method": "kto", "dpo": {"lora_dim": 0}}, 2),
        ({"method": "rejection_sampling", "rejection": {"lora_dim": 0}}, 2),
        ({"method": "rejection_sampling", "ppo": {"lora_dim": 0}}, 1),
    ],
)
def test_infer_holds_the_reference_under_the_adapter(values, models):
    """Not for sure where it also answers with the policies of earlier rounds."""
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    parts = memory_estimate.infer(given_of(shape, 2, **values)).parts
    assert parts["policy"] + parts["reference"] == models * 2 * shape.policy


def test_measuring_the_kl_is_a_phase_of_its_own(tiny):
    """With a large vocabulary the logits of policy and reference outweigh what sampling takes."""
    wide = dataclasses.replace(shape_of(tiny), vocab_size=32000)
    given = given_of(wide, target_sequence_length=64)
    for need in (memory_estimate.ppo(given), memory_estimate.infer(given)):
        tokens = given.tokens(given.recipe.ppo.micro_batch_tokens, 10)
        answers = tokens // given.length * 64
        assert need.phases["measure"]["activations"] >= 2 * 4 * answers * wide.vocab_size
    assert memory_estimate.infer(given).phase == "measure"


def test_gradients_are_beside_activations_only_of_later_micro_batches():
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    for stage, one in (("sft", memory_estimate.sft), ("reward", memory_estimate.reward)):
        needs = []
        for limit in (10**9, 1):
            section = {"lora_dim": 0, "micro_batch_tokens": limit} | ({"dataset": "t"} if stage == "sft" else {})
            needs.append(one(given_of(shape, 2, **{stage: section})))
        lone, several = (need.phases["learn"]["gradients"] for need in needs)
        assert lone < several and needs[0].phases["step"]["gradients"] >= 4 * shape.scorer


def test_only_answers_of_demonstrations_have_logits():
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    answered = given_of(shape, 2, sft={"dataset": "t", "lora_dim": 0}, prompt_sequence_length=500)
    packed = dataclasses.replace(answered, packed=True)
    assert memory_estimate.sft(packed).most("activations") > memory_estimate.sft(answered).most("activations")


def test_the_head_gradient_comes_on_top_where_the_head_learns(tiny):
    shape = shape_of(tiny)
    assert model_shape.head_gradient(shape, 2, lora=False) == 2 * shape.vocab_size * shape.hidden_size
    assert model_shape.head_gradient(shape, 2, lora=True) == 0


def test_one_backbone_carries_all_that_start_from_one_model():
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    one, smaller = given_of(shape, 2), dataclasses.replace(shape, layers=16)
    other = dataclasses.replace(one, reward_shape=smaller)
    full = given_of(shape, 2, reward={"lora_dim": 0})
    base = 2 * shape.policy
    parts = memory_estimate.ppo(one).parts
    assert parts["policy"] + parts["reward"] + parts["critic"] + parts["reference"] < 1.01 * base
    assert memory_estimate.ppo(other).parts["reward"] == 2 * smaller.scorer
    assert memory_estimate.ppo(full).parts["reward"] == memory_estimate.ppo(full).parts["critic"] == 2 * shape.scorer
    assert [memory_estimate.compare(given).most("reward") for given in (one, full)] == [
        2 * shape.scorer,
        4 * shape.scorer,
    ]


def test_what_is_held_in_4_and_in_8_bits():
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    given, coded = given_of(shape, 2), given_of(shape, 2, quantize="nf4")
    assert given.frozen(shape, shape.policy) == 2 * shape.policy
    assert coded.frozen(shape, shape.policy) == pytest.approx(
        0.5159 * shape.linear + 2 * (shape.policy - shape.linear), rel=1e-3
    )
    for phase in ("learn", "measure", "sample"):
        held = [memory_estimate.ppo(each).phases[phase]["activations"] for each in (coded, given)]
        assert held[0] - held[1] == 2 * 11008 * 4096, "one layer in its own precision"
    full, small = (given_of(shape, 2, optimizer=kind, reward={"lora_dim": 0}) for kind in ("adamw", "adamw8bit"))
    assert full.optimizer(1000) == 12_000 and small.optimizer(1000) == 6031
    assert given_of(shape, 4).optimizer(1000) == 8_000
    stored = [disk_estimate.disk(each, ["reward"])["checkpoints"] / shape.scorer for each in (full, small)]
    assert stored == pytest.approx([48, 3 * (6.03125 + 4)], rel=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "llama"},
        {"model_type": "llama", "hidden_act": "gelu"},
        {"model_type": "mistral"},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2"},
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
        {"model_type": "qwen3"},
    ],
)
def test_which_decoders_transformers_trains(values):
    """As `models.llama` says of the model itself, and those keep more."""
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    written = {"intermediate_size": 16, "num_key_value_heads": 1} | sizes | values
    shape = Shape.of(written)
    with torch.device("meta"):
        config = AutoConfig.for_model(**written)
        assert shape.own_pass == llama.applies(AutoModelForCausalLM.from_config(config).base_model)
    own, other = (
        model_shape.kept_activations(dataclasses.replace(shape, own_pass=own), 4096, 512, 2) for own in (True, False)
    )
    assert own < other
