"""The time of a run: worked numbers of what each stage does, and the speeds that are measured here."""

import json
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from preferent.commands import plan, time_estimate
from preferent.commands.inference import machine_speed
from preferent.commands.time_estimate import Speeds, Work
from preferent.config import recipe, stage_graph
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import Shape
from preferent.models.world import World

SPEEDS = Speeds(
    learn_policy=2.0,
    learn_critic=3.0,
    learn_reward=5.0,
    measure=7.0,
    value=11.0,
    score=13.0,
    read=17.0,
    token=0.5,
    step_policy=100.0,
    step_scorer=1000.0,
    start=1e6,
)
WORK = Work(
    [(15, 4), (25, 8)],
    {
        "preference": {"train": 90, "judge": 50, "validation": 8, "test": 4},
        "prompt": {"train": 30, "validation": 6, "test": 12},
    },
)
ANSWER = 17 + 6 * 0.5


def taken(**values) -> dict[str, tuple[float, float]]:
    """The seconds of a step and, beside the start, of all, by stage."""
    given = {"large_model_reference": "m", "preference_dataset": "p.jsonl"} | values
    found = recipe.parse(given)[0]
    return {
        stage.stage: (stage.step, stage.total - SPEEDS.start)
        for stage in time_estimate.times(found, stage_graph.build(found), WORK, SPEEDS)
    }


def test_a_reward_model():
    found = taken(reward_model_train_steps=10, reward={"batch_size": 4, "validation_every": 4})
    step = 8 * 5 + 1000
    scored = 2 * (4 * 8 + 4) + 64  # three validations and the last one; the test pairs; the model's own answers
    assert found["reward"] == found["judge"] == (step, 64 * ANSWER + 10 * step + scored * 13)


def test_ppo():
    section = {"batch_size": 8, "minibatches": 2, "epochs": 3, "validation_every": 5, "validation_prompts": 4}
    found = taken(reinforcement_learning_train_steps=10, ppo=section, reward={"normalize_prompts": 16})
    step = 8 * (ANSWER + 13 + 7 + 11 + 3 * (2 + 3)) + 3 * 2 * (100 + 1000)
    validated = 3 * 4 * (ANSWER + 7 + 13)  # before the first step too
    assert found["ppo"] == (step, 16 * (ANSWER + 13) + 10 * step + validated)


def test_an_algorithm_without_a_critic():
    section = {"algorithm": "rloo", "batch_size": 8, "minibatches": 1, "validation_prompts": 6}
    found = taken(reinforcement_learning_train_steps=1, ppo=section, reward={"normalize_prompts": 16})
    assert found["ppo"][0] == 8 * (ANSWER + 13 + 7 + 2) + 100


def test_the_other_methods():
    section = {"batch_size": 4, "train_steps": 6, "validation_every": 3}
    pairs = (90 + 8 + 4) + (2 * 8 + 4)  # under the reference; at two validations and at the end
    assert taken(method="dpo", dpo=section)["dpo"] == (8 * 2 + 100, 6 * 116 + 2 * pairs * 3.5)
    assert taken(method="dpo", dpo=section | {"loss": "reference_free"})["dpo"][1] == 6 * 116 + 2 * 20 * 3.5
    assert taken(method="kto", dpo=section)["dpo"] == (116 + 4 * 3.5, 6 * (116 + 14) + 3 * pairs * 3.5)
    rounds = {"rounds": 2, "prompts": 5, "samples": 3, "train_steps": 4, "batch_size": 6}
    found = taken(method="rejection_sampling", rejection=rounds, ppo={"validation_prompts": 4})
    step = 6 * 2 + 100
    assert found["rejection"] == (step, 2 * (15 * (ANSWER + 13) + 4 * step + 4 * (ANSWER + 7 + 13)))


def test_answers_and_the_verdict():
    found = taken(sft={"dataset": "d", "train_steps": 3, "batch_size": 2}, infer={"max_prompts": 10})
    assert found["sft"] == (104, 312)
    assert found["infer-tuned"] == (0, 10 * (2 * ANSWER + 7)) and found["infer-base"] == (0, 10 * ANSWER)
    sampled = taken(infer={"sampling_strategy": "temperature_sampling"})
    assert sampled["infer-tuned"] == (0, 12 * (ANSWER + 7))
    assert found["compare"] == (0, 2 * 10 * 2 * 13), "by judge and reward model"


def test_durations():
    texts = [time_estimate.duration(seconds) for seconds in (0.0123, 9.96, 75, 150, 9000, 200000)]
    assert texts == ["0.012 seconds", "10.0 seconds", "75 seconds", "2.5 minutes", "2.5 hours", "2.3 days"]


def test_lengths_are_those_of_the_data(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"input_text": "the dog and the man", "candidate_0": " a dog", "candidate_1": " a", "choice": 0}
    Path("p.jsonl").write_text("".join(json.dumps(row | {"input_text": f"the dog {i}"}) + "\n" for i in range(60)))
    seen = []

    def measure(facts, work):
        seen.append(work)
        return SPEEDS

    values = {"large_model_reference": str(tiny), "preference_dataset": "p.jsonl", "prompt_sequence_length": 64}
    found = recipe.parse(values)[0]
    text = plan.describe(found, [], Path("runs/x"), measure=measure)
    (work,) = seen
    assert 3 <= work.prompt <= 12 and 2 <= work.answer <= 4 and work.rows["preference"]["train"] > 30
    assert f"for prompts of {work.prompt} tokens and answers of {work.answer}," in text
    assert "time on this machine" in text and " a step" in text
    quantized = recipe.parse(values | {"quantize": "nf4", "ppo": {"lora_dim": 2}, "reward": {"lora_dim": 2}})[0]
    assert "not known: the speed of quantize: nf4" in plan.describe(quantized, [], Path("x"), measure=measure)


def counted(monkeypatch, large: bool, rank: int, layers: int, prompt: int = 30) -> Speeds:
    """What is timed, in floating-point operations; of a model that is `large`, and so timed by its layers, or not."""

    def operations(run, world, networks) -> float:
        with FlopCounterMode(display=False) as counter:
            run()
        for network in networks:
            network.body.zero_grad(set_to_none=True)
        return 1e-15 * counter.get_total_flops()

    monkeypatch.setattr(machine_speed, "_seconds", operations)
    monkeypatch.setattr(machine_speed, "LARGE", 0 if large else 1 << 40)
    values = {"large_model_reference": "m", "preference_dataset": "p", "precision": "fp32", "threads": 1}
    sections = {"ppo": {"lora_dim": rank, "batch_size": 8}, "reward": {"lora_dim": rank}}
    shape = Shape(64, 32, layers, 4, 2, 8, 48)
    facts = ModelFacts(recipe.parse(values | sections)[0], shape, shape, 4, 40, WORK.rows["prompt"])
    return machine_speed.measure(facts, Work([(prompt - 5, 8), (prompt + 5, 12)], WORK.rows))


COUNTED = [name for name in Speeds._fields if not name.startswith("st")]


@pytest.mark.parametrize("rank", [0, 4])
def test_a_large_model_is_timed_by_its_layers(monkeypatch, rank):
    whole, layered = (counted(monkeypatch, large, rank, layers=7) for large in (False, True))
    for name in COUNTED:
        assert getattr(layered, name) == pytest.approx(getattr(whole, name), rel=1e-9), name
        assert getattr(whole, name) > 0, name


def test_a_sequence_that_takes_too_long_is_cut(monkeypatch):
    whole = counted(monkeypatch, False, 0, 3, prompt=300)
    monkeypatch.setattr(machine_speed, "MOST", whole.learn_policy / 4)
    cut = counted(monkeypatch, False, 0, 3, prompt=300)
    assert cut != whole
    for name in set(COUNTED) - {"token"}:  # it attends to a prompt that is not scaled up
        assert getattr(cut, name) == pytest.approx(getattr(whole, name), rel=0.3), name


def test_this_machine_is_timed(monkeypatch):
    """Each speed is a time: of a call, and not of nothing."""
    monkeypatch.setattr(machine_speed, "SECONDS", 0.01)
    began = []
    clock = iter(range(1 << 20))
    monkeypatch.setattr(machine_speed.time, "perf_counter", lambda: began.append(1) or float(next(clock)))
    world = World.of(recipe.parse({"large_model_reference": "m", "preference_dataset": "p", "device": "cpu"})[0])
    calls = []
    assert machine_speed._seconds(lambda: calls.append(1), world, ()) == 1.0
    assert len(calls) >= 2 and len(began) == 2 * len(calls)
