"""What several GPUs hold, send and take: worked numbers, and counts of what the code itself does."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from bench import layouts, published_runs
from commands.test_time_estimate import WORK
from preferent.cli.argument_types import speed
from preferent.commands import memory_fit, plan, python_api
from preferent.commands.cards import card_speed, hardware, rank_lines, rank_memory, traffic
from preferent.commands.cards.hardware import CARDS, Card, Machines
from preferent.commands.cards.traffic import Traffic
from preferent.commands.inference import machine_speed
from preferent.commands.time_estimate import Work
from preferent.config import memory_estimate, recipe, stage_graph
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import LLAMA_2, Shape
from preferent.errors import UsageError
from preferent.models.world import World
from preferent.rollouts import llama_decoder
from preferent.runs import environment, rank_shares

SHAPE = Shape(
    vocab_size=1000, hidden_size=64, layers=2, heads=4, key_value_heads=4, head_size=16, intermediate_size=128
)
LAYER = 4 * 64 * 64 + 3 * 64 * 128
EMBEDDING = 1000 * 64
NORMS = 5 * 64
POLICY, SCORER = 2 * EMBEDDING + 2 * LAYER + NORMS, EMBEDDING + 2 * LAYER + NORMS + 64
LORA = 2 * 3 * (8 * 64 + 3 * (64 + 128))
"""Weights of an adapter of rank 3."""
SEQUENCES = Work([(24, 8)], WORK.rows)


def facts(rank: int = 0, shape: Shape = SHAPE, **values) -> ModelFacts:
    given = {"large_model_reference": "m", "preference_dataset": "p", "ppo": {}, "reward": {}} | values
    given["ppo"] = {"lora_dim": rank, "batch_size": 12, "minibatches": 2, "epochs": 3} | given["ppo"]
    given["reward"] = {"lora_dim": rank, "batch_size": 6} | given["reward"]
    others = {name: {"lora_dim": rank} for name in ("dpo", "rejection")}
    sft = {"dataset": "d", "lora_dim": rank, "batch_size": 4, "sequence_length": 32}
    found = recipe.parse({"target_sequence_length": 8, "sft": sft} | others | given)[0]
    return ModelFacts(found, shape, shape, 2, 24, {"train": 30, "validation": 6, "test": 12}, on_gpu=True)


def test_a_rank_has_its_share_of_the_rows():
    values = {"infer": {"max_prompts": 10}, "ppo": {"validation_prompts": 7}, "reward": {"normalize_prompts": 9}}
    shared = rank_memory.facts_of_a_rank(facts(**values), 4)
    assert shared.prompts == {"train": 8, "validation": 2, "test": 3}
    found = shared.recipe
    assert (found.ppo.batch_size, found.ppo.minibatches, found.reward.batch_size) == (4, 2, 2), "a minibatch of 6 is 2"
    assert (found.infer.max_prompts, found.ppo.validation_prompts, found.reward.normalize_prompts) == (3, 2, 3)
    assert found.sft.batch_size == 1 and found.dpo.batch_size == found.rejection.batch_size == 16
    assert rank_memory.work_of_a_rank(WORK, 4).rows["preference"] == {
        "train": 23,
        "judge": 13,
        "validation": 2,
        "test": 1,
    }
    assert rank_memory.facts_of_a_rank(facts(), 1).recipe == facts().recipe


def test_a_ring():
    assert traffic.gathered(600, 3) == 400 and traffic.added(600, 3) == 800
    assert traffic.gathered(600, 1) == traffic.added(600, 1) == 0


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo", "rejection"])
@pytest.mark.parametrize("rank", [0, 3])
def test_what_learns_is_what_has_an_optimizer(stage, rank):
    learning = rank_shares.learners(facts(rank), stage)
    need = memory_estimate.need(rank_memory.at_once(facts(rank)), stage)
    assert need.parts["optimizer"] == 12 * sum(learner.trained for learner in learning)
    assert rank_shares.is_sharded(facts(rank), stage) == (rank == 0)
    assert rank_shares.is_sharded(facts(rank, shard="full"), stage)
    assert all(learner.part in need.parts for learner in learning)


def test_what_learns_of_an_ensemble_and_without_a_critic():
    averaged = facts(3, reward={"members": 2, "combine": "weights"})
    assert [learner.trained for learner in rank_shares.learners(averaged, "ppo")] == [LORA, 2 * LORA + 64]
    alone = facts(0, ppo={"algorithm": "rloo", "samples_per_prompt": 2})
    assert [learner.part for learner in rank_shares.learners(alone, "ppo")] == ["policy"]
    assert rank_shares.learners(facts(), "infer") == []


def test_adapters_are_added_up_once_an_update():
    """3 epochs of 2 minibatches; 12 rollouts of 24 + 8 tokens: ids, log-probabilities, and 5 numbers each measured."""
    found = traffic.traffic(facts(3, ppo={"micro_batch_tokens": 32}), "ppo", SEQUENCES, 4)
    trained = LORA + (LORA + 64)
    rollouts = 3 / 4 * 12 * 4 * (32 + 8) + 2 * 3 / 4 * 12 * 8 * 4 * 5
    assert found == Traffic(2 * 3 / 4 * 4 * trained * 6, 0, rollouts)
    assert traffic.traffic(facts(3), "reward", SEQUENCES, 4) == Traffic(2 * 3 / 4 * 4 * (LORA + 64), 0, 0)


def test_shards_are_gathered_twice_a_micro_batch():
    """Two sequences of 32 tokens at once: of a minibatch of 6 over 2 ranks each has 3, which are 2 micro-batches."""
    values = {"micro_batch_tokens": 64}
    given = facts(ppo=values, reward=values)
    found = traffic.traffic(given, "ppo", SEQUENCES, 2)
    learnt = 3 * 2 * 2
    assert traffic.passes(given, "ppo", SEQUENCES, 2) == (learnt, 4, 6)
    weights = 2 * learnt * 2 * (POLICY + SCORER)
    weights += 4 * 2 * (POLICY + SCORER + POLICY + SCORER)  # policy, critic, reference and reward measure
    weights += 2 * POLICY  # to sample
    assert found.gradients == 1 / 2 * learnt * 4 * (POLICY + SCORER)
    assert found.weights == 1 / 2 * weights
    pairs = traffic.traffic(given, "reward", SEQUENCES, 2)  # 12 answers, 6 a rank, 3 micro-batches
    assert pairs == Traffic(1 / 2 * 3 * 4 * SCORER, 1 / 2 * 2 * 3 * 2 * SCORER, 0)


def test_a_frozen_backbone_in_shards_is_gathered_as_often_and_adapters_are_added_up():
    values = {"micro_batch_tokens": 64}
    given = facts(3, ppo=values, reward=values | {"members": 2}, shard="full")
    found = traffic.traffic(given, "ppo", SEQUENCES, 2)
    weights = 2 * 12 * 2 * (POLICY + SCORER)
    weights += 4 * 2 * (POLICY + SCORER + POLICY + 2 * SCORER)  # policy, critic, reference and both members measure
    weights += 2 * POLICY  # to sample
    assert found.gradients == 2 * 1 / 2 * 4 * (LORA + LORA + 64) * 6
    assert found.weights == 1 / 2 * weights
    pairs = traffic.traffic(given, "reward", SEQUENCES, 2)
    assert pairs == Traffic(2 * 1 / 2 * 4 * (LORA + 64), 1 / 2 * 2 * 3 * 2 * SCORER, 0)


def test_a_whole_policy_beside_adapters_in_an_optimizer_step():
    """AdamW moves 30 bytes a weight, of what is cut on one rank of 4."""
    given = facts(ppo={"lora_dim": 0}, reward={"lora_dim": 3})
    found = card_speed.speeds(Card(1, 1.0, 1.0, 1.0), given, SEQUENCES, "ppo", 4)
    assert found.step_policy == pytest.approx(30 * POLICY / 4 / 0.6)
    assert found.step_scorer == pytest.approx(30 * (LORA + 64) / 0.6)


def test_a_rank_of_shards_holds():
    given = rank_memory.at_once(facts())
    whole = memory_estimate.need(given, "ppo")
    found = rank_shares.shard(given, whole, "ppo", 4)
    both = POLICY + SCORER
    assert found.parts == {
        "policy": 0,
        "reference": 2 * POLICY // 4,
        "reward": 2 * SCORER // 4,
        "critic": 0,
        "optimizer": 12 * both // 4,
        "average": 0,
    }
    used, unit = 2 * (2 * LAYER + 2 * EMBEDDING), 2 * EMBEDDING
    assert found.phases["learn"] == {
        "policy": used,
        "gradients": 4 * both // 4 + 6 * unit,
        "activations": whole.phases["learn"]["activations"],
    }
    assert found.phases["sample"] == whole.phases["sample"] | {"policy": 2 * POLICY}
    assert found.phases["finish"] == {"best": both, "policy": used}
    step = rank_shares.shard(given, memory_estimate.need(given, "sft"), "sft", 4).phases["step"]
    assert step == {"gradients": POLICY}


def test_a_rank_of_a_frozen_backbone_in_shards_holds():
    """Adapters of policy, critic and two reward models are whole; the one backbone below all is not."""
    given = rank_memory.at_once(facts(3, reward={"members": 2}, ppo={"ema_decay": 0.9}, shard="full"))
    whole = memory_estimate.need(given, "ppo")
    found = rank_shares.shard(given, whole, "ppo", 4)
    assert found.parts == {
        "policy": 2 * POLICY // 4 + 2 * LORA,
        "reference": 0,
        "reward": 2 * 2 * (LORA + 64),
        "critic": 2 * (LORA + 64),
        "optimizer": 12 * (LORA + LORA + 64),
        "average": 4 * LORA,
    }
    used = 2 * (2 * LAYER + 2 * EMBEDDING)
    assert found.phases["learn"] == whole.phases["learn"] | {"policy": used}
    assert found.phases["sample"] == whole.phases["sample"] | {"policy": 2 * POLICY}
    tuned = rank_shares.shard(given, memory_estimate.need(given, "sft"), "sft", 4)
    assert tuned.parts == {"policy": 2 * POLICY // 4 + 2 * LORA, "optimizer": 12 * LORA}
    assert tuned.phases["step"] == {"gradients": 4 * LORA}


@pytest.mark.parametrize(("shard", "reward"), [("auto", 2 * SCORER), ("full", 2 * SCORER // 4)])
def test_a_rank_of_a_whole_policy_beside_a_reward_model_with_an_adapter_holds(shard, reward):
    given = rank_memory.at_once(facts(ppo={"lora_dim": 0}, reward={"lora_dim": 3}, shard=shard))
    found = rank_shares.shard(given, memory_estimate.need(given, "ppo"), "ppo", 4)
    assert found.parts == {
        "policy": 0,
        "reference": 2 * POLICY // 4,
        "reward": reward,
        "critic": 2 * (LORA + 64),
        "optimizer": 12 * POLICY // 4 + 12 * (LORA + 64),
        "average": 0,
    }
    assert found.phases["learn"]["gradients"] == POLICY + 4 * (LORA + 64) + 6 * 2 * EMBEDDING


def test_shards_in_fp32_are_the_masters_themselves():
    given = replace(rank_memory.at_once(facts()), bytes=4)
    found = rank_shares.shard(given, memory_estimate.need(given, "sft"), "sft", 4)
    assert found.parts == {"policy": 4 * POLICY // 4, "optimizer": 8 * POLICY // 4}


def test_seven_billion_weights_need_several_cards_to_learn():
    seven = LLAMA_2["meta-llama/Llama-2-7b-hf"]
    given = facts(shape=seven, target_sequence_length=64, ppo={"batch_size": 64, "minibatches": 1})
    tasks = [task for task in stage_graph.build(given.recipe) if task.name == "ppo"]
    (alone,) = rank_memory.fits(given, tasks, 79 << 30, 1)
    assert not alone.fits and alone == memory_fit.fits(given, tasks, 79 << 30)[0]
    (two,) = rank_memory.fits(given, tasks, 79 << 30, 2)
    assert not two.fits
    count = rank_memory.enough(given, alone, 2)
    assert count in (4, 8) and rank_memory.fits(given, tasks, 79 << 30, count)[0].fits
    lines = list(rank_lines.layouts(given, [two], 2))
    assert len(lines) == 1 and lines[0].endswith(f"; fits with {count} ranks")
    assert rank_memory.enough(given, replace(alone, memory=1 << 30), 2) is None


@pytest.mark.parametrize("whole", [True, False])
def test_the_passes_take_what_torch_counts(whole):
    """To the last operation; torch counts the half of attention that is masked, too."""
    config = machine_speed.config_of(SHAPE)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").requires_grad_(whole)
    states = torch.zeros(1, 10, 64, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        logits = model(inputs_embeds=states).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    masked = 2 * 10**2 * 64 * 2
    assert forward.get_total_flops() == card_speed.forward(SHAPE, 10, 10) + masked
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == card_speed.training(SHAPE, 10, 10, whole, again=False) + 3 * masked


def test_flop_of_passes():
    attention, linear, head = 2 * 10**2 * 64 * 2, 2 * 10 * 2 * LAYER, 2 * 3 * EMBEDDING
    assert card_speed.forward(SHAPE, 10, 3) == linear + attention + head
    assert card_speed.training(SHAPE, 10, 3, whole=True, again=False) == 3 * (linear + attention + head)
    assert card_speed.training(SHAPE, 10, 3, whole=False, again=False) == 2 * (linear + head) + 3 * attention
    again = card_speed.training(SHAPE, 10, 3, whole=True, again=True)
    assert again == 4 * (linear + attention) + 3 * head


def test_a_token_waits_for_what_is_slowest():
    work, given = Work([(24, 8)], WORK.rows), facts()
    read = 2 * (2 * LAYER + EMBEDDING) + 4 * (2 * 2 * 2 * 64 * 28)  # weights; keys and values of 4 rows of 28 tokens
    products = 2 * 4 * (2 * LAYER + EMBEDDING)
    told = 14e-6 * 2 * 23
    cards = {
        read / 0.6: Card(1, 1e30, 1.0, 1.0),
        products / 0.3: Card(1, 1.0, 1e30, 1.0),
        told: Card(1, 1e30, 1e30, 1.0),
    }
    for seconds, card in cards.items():
        assert card_speed.token(card, given, work, 4) == pytest.approx(seconds / 4)
    assert card_speed.token(CARDS["h100-80g"], facts(3), work, 4) == pytest.approx(14e-6 * 2 * 51 / 4)


@pytest.mark.parametrize("rank", [0, 3])
def test_the_operations_of_a_token_are_those_of_the_decoder(monkeypatch, rank):
    """Of a layer, without norms, which a CPU has in pieces: those are two. A view is no operation."""
    monkeypatch.setattr(llama_decoder, "COPIED_BYTES", 0)
    monkeypatch.setattr(llama_decoder, "_norm", lambda module: lambda x: x)

    def operations(layers: int) -> int:
        values = {"ppo": {"lora_dim": rank}, "reward": {"lora_dim": rank}, "precision": "bf16", "threads": 1}
        given = replace(facts(**values), shape=replace(SHAPE, layers=layers))
        policy = machine_speed._policy(given.shape, World.of(given.recipe), given)
        decoder = llama_decoder.LlamaDecoder(policy, 4, 64, 1024)
        with torch.no_grad():
            decoder.admit([np.arange(1, 6, dtype=np.int32)] * 4)
            with Operations() as counting:
                decoder.step(torch.zeros(4, dtype=torch.long))
        return counting.calls.total()

    expected = card_speed.ADAPTED if rank else card_speed.OPERATIONS
    assert operations(2) - operations(1) + 2 == expected


class Operations(TorchDispatchMode):
    """Counts the operations that compute or copy."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        returned = [found.alias_info for found in operation._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in returned) and "view" not in str(operation):
            self.calls[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


def test_a_ring_is_as_fast_as_its_slowest_link():
    assert Machines(8, 1, 300e9).bandwidth == 300e9
    assert Machines(8, 2, 300e9, 25e9).bandwidth == 25e9 and Machines(8, 2, 300e9, 25e9).ranks == 16
    assert Machines(1, 4, None, 25e9).bandwidth == 25e9
    assert Machines(8, 2, 300e9).bandwidth is None and Machines(8).bandwidth is None


def test_a_step_is_a_share_and_what_it_sends():
    given, machines = facts(3), Machines(4, 1, 1e9)
    tasks = [task for task in stage_graph.build(given.recipe) if task.name in ("ppo", "infer-base")]
    quick = rank_lines.speed(CARDS["a100-80g"], None, machines)
    found = {stage.stage: stage for stage in rank_lines.times(given, tasks, SEQUENCES, machines, quick)}
    silent = {stage.stage: stage for stage in rank_lines.times(given, tasks, SEQUENCES, Machines(4, 1, 1e30), quick)}
    seconds = traffic.traffic(given, "ppo", SEQUENCES, 4).total / 1e9
    steps = given.recipe.reinforcement_learning_train_steps
    assert found["ppo"].step - silent["ppo"].step == pytest.approx(seconds)
    assert found["ppo"].total - silent["ppo"].total == pytest.approx(steps * seconds)
    assert found["infer-base"] == silent["infer-base"]


def test_this_machine_is_measured_once():
    calls = []
    here = rank_lines.speed(None, lambda given, work: calls.append(work) or "speeds", Machines(4))
    assert [here(facts(), SEQUENCES, stage) for stage in ("sft", "ppo")] == ["speeds", "speeds"] and len(calls) == 1
    assert rank_lines.speed(None, None, Machines()) is None


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"candidate_0": " a", "candidate_1": " b", "choice": 0}
    Path("p.jsonl").write_text("".join(json.dumps(row | {"input_text": f"the dog {i}"}) + "\n" for i in range(60)))
    return {"large_model_reference": "llama-2-7b", "preference_dataset": "p.jsonl", "ppo": {"lora_dim": 1}}


def test_the_plan_of_several_cards(rows):
    loaded = python_api.load_recipe(rows)
    text = loaded.plan(card="h100-80g", gpus=8, nodes=2, network=25e9)
    assert "memory of each of 16 ranks, tokens and disk" in text and "of 79.0 GiB (as given)" in text
    assert "ppo      replicated: every rank holds all weights" in text
    assert "ppo      sends in a step, and receives: gradients " in text
    assert "time on such cards, by their data sheet: nothing was run" in text and " a step" in text
    unknown = loaded.plan(card="h100-80g", gpus=8, nodes=2)
    assert "not known: how fast the ranks send; give --link" in unknown and " a step\n" not in unknown
    one = loaded.plan(card="h100-80g")
    assert "each of" not in one and "sends in a step" not in one and "time on such cards" in one
    with pytest.raises(UsageError, match="card h9 is not known; take one of a100-40g, "):
        loaded.plan(card="h9")


def test_a_plan_that_shards(rows):
    full = {"ppo": {"lora_dim": 0}, "reward": {"lora_dim": 0}}
    text = python_api.load_recipe(rows | full).plan(memory=79 << 30, gpus=8)
    assert "ppo      sharded: peak " in text and "; replicated it would be " in text and "time on" not in text
    assert "weights " in text.partition("ppo      sends in a step")[2].partition("\n")[0]


def test_without_gpus_a_plan_is_of_the_ranks_that_a_run_has(rows, monkeypatch):
    full = {"ppo": {"lora_dim": 0}, "reward": {"lora_dim": 0}, "processes": 8}
    text = python_api.load_recipe(rows | full).plan(card="h100-80g")
    assert "memory of each of 8 ranks" in text and text.count("sharded: peak") == 3
    whole = python_api.load_recipe(rows | full | {"shard": "none"}).plan(card="h100-80g")
    assert "ppo      replicated: every rank holds all weights" in whole and "sharded" not in whole
    frozen = python_api.load_recipe(rows | {"processes": 8, "shard": "full"}).plan(memory=4 << 30)
    assert frozen.count("sharded: peak") == 3 and "quantize" not in frozen
    one = python_api.load_recipe(rows | full | {"processes": 1})
    assert one.plan(card="h100-80g", gpus=8) == text
    assert one.plan(card="h100-80g") == one.plan(card="h100-80g", gpus=1)
    monkeypatch.setattr(environment, "_gpus", lambda: [{"name": "card", "memory_gib": 80}] * 4)
    auto = python_api.load_recipe(rows | {"processes": "auto"})
    assert "memory of each of 4 ranks" in auto.plan() and "of 80.0 GiB (card)" in auto.plan()


def test_ranks_on_processors_divide_the_memory_and_do_the_work_in_the_time_of_one(rows, monkeypatch):
    monkeypatch.setattr(environment, "memory", lambda: 64 << 30)
    monkeypatch.setattr(machine_speed, "measure", lambda *given: card_speed.speeds(CARDS["l40s-48g"], *given, "ppo"))
    shape = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    Path("model").mkdir()
    Path("model/config.json").write_text(json.dumps(shape | {"model_type": "llama", "intermediate_size": 64}))
    small = rows | {"large_model_reference": "model", "device": "cpu"}
    one, two = (python_api.load_recipe(small | {"processes": count}).plan(calibrate=True) for count in (1, 2))
    assert "of 64.0 GiB (this machine)" in one
    assert "memory of each of 2 ranks" in two and "of 32.0 GiB (a rank's part of this machine)" in two
    assert "ppo      sends in a step" in two and "not known: how fast" not in two
    assert two.partition("time on this machine")[2] == one.partition("time on this machine")[2] != ""


def test_names_of_speeds_and_cards():
    assert speed("25GB/s") == 25e9 and speed("1GiB/s") == 2.0**30
    for wrong in ("25GB", "25", "GB/s", "0GB/s", "25GB/h"):
        with pytest.raises(Exception, match="is no speed"):
            speed(wrong)
    assert hardware.named("h100-80g") is CARDS["h100-80g"]
    assert plan.ONE_GPU.ranks == 1


def run_of(who: str, model: str) -> published_runs.PublishedRun:
    return next(run for run in published_runs.RUNS if (run.who, run.model) == (who, model))


def test_two_published_runs_are_planned_within_a_factor_of_two():
    for who, model in (("DeepSpeed-Chat", "OPT 6.7B"), ("OpenRLHF", "Llama 2 7B")):
        run = run_of(who, model)
        assert 1 / 2 < published_runs.planned(run) / run.seconds < 2, who


def test_the_plan_of_a_published_run_by_hand():
    """6.7B on 8 cards, 131,900 prompts of 256 tokens: of each of 129 steps a rank has 128 rollouts of 512 tokens."""
    found = published_runs.phases(run_of("DeepSpeed-Chat", "OPT 6.7B"))
    layers, hidden, head = 32 * (4 * 4096**2 + 3 * 4096 * 10922), 4096, 50272 * 4096
    passing = 2 * 512 * layers + 2 * 512**2 * hidden * 32
    small = 2 * 512 * 24 * (4 * 1024**2 + 3 * 1024 * 2730) + 2 * 512**2 * 1024 * 24
    peak = 0.3 * 312e12
    learnt = 4 * passing + 3 * 2 * 256 * head + 4 * small  # forward, again, and backward of both kinds
    updated = 30 / 8 * (6_649_421_824 + 353_519_616) / (0.6 * 2.039e12)
    assert found["learn"] == pytest.approx(129 * (128 * learnt / peak + updated), rel=0.001)
    measured = 2 * (passing + 2 * 256 * head) + 2 * small
    assert found["measure"] == pytest.approx(129 * 128 * measured / peak, rel=0.001)
    read = 2 * (layers + head) + 2 * 2 * 32 * 4096 * 128 * (256 + 128)
    prompt = 2 * 256 * layers + 2 * 256**2 * hidden * 32 + 2 * head
    assert found["sample"] == pytest.approx(129 * (256 * read / (0.6 * 2.039e12) + 128 * prompt / peak), rel=0.001)
    networks = 2 * (run_of("DeepSpeed-Chat", "OPT 6.7B").shape.policy + published_runs.opt(1024, 24, 16).scorer)
    micros = 128 // 8
    sent = micros * (2 * networks + 2 * networks) + micros * 2 * networks + networks  # gradients in fp32 are twice bf16
    assert found["send"] == pytest.approx(129 * 7 / 8 * sent / 300e9, rel=0.02)


def test_the_tables_of_the_page_are_what_is_computed():
    page = (Path(__file__).resolve().parents[2] / "docs/scale.md").read_text()
    published = published_runs.table(published_runs.RUNS, published_runs.SHARES)
    computed = [*published, "", *published_runs.phase_table(published_runs.RUNS), "", *layouts.tables()]
    for table in "\n".join(computed).split("\n\n"):
        assert table in page
