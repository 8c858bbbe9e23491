"""The stages as data: every input is made before it is read, and every field of the recipe is some stage's."""

import pytest

from preferent.cli.arguments import STAGES, parser
from preferent.config import recipe, stage_graph
from preferent.errors import UsageError


def build(**values):
    found, _ = recipe.parse({"large_model_reference": "models/base", "preference_dataset": "p.jsonl", **values})
    return {task.name: task for task in stage_graph.build(found)}


VARIANTS = [
    {},
    {"sft": {"dataset": "a.jsonl"}},
    {"compare": {"judge": "reward"}},
    {"reward": {"sources": "module:function"}},
    {"reward": {"sources": "module:function"}, "preference_dataset": None, "prompt_dataset": "q.jsonl"},
    {"large_model_reference": "llama-2-13b", "sft": {"dataset": "a.jsonl"}},
    {"reward": {"members": 3}},
    {"method": "dpo", "sft": {"dataset": "a.jsonl"}},
    {"method": "kto"},
    {"method": "rejection_sampling", "reward": {"members": 2}},
    {"reward": {"sources": [{"source": "reward"}, {"source": "m:f"}, {"source": "models/other-one", "weight": 2}]}},
    {"reward": {"sources": [{"source": "models/other-one"}]}, "preference_dataset": None, "prompt_dataset": "q.jsonl"},
]


@pytest.mark.parametrize("values", VARIANTS)
def test_every_input_is_an_output_of_an_earlier_task(values):
    made = {"."}
    for task in build(**values).values():
        for path in task.inputs.values():
            assert path in made, (task.name, path)
        made |= {f"{task.folder}/{output}" for output in task.outputs}


@pytest.mark.parametrize("values", VARIANTS)
def test_every_command_is_one_that_the_command_line_knows(values):
    for task in build(**values).values():
        given = parser().parse_args(task.command("runs/x"))
        assert given.stage == task.stage
        names = {word.partition("=")[0] for word in given.inputs}
        required, optional = stage_graph.INPUTS[task.stage]
        foreign = {"reward-2", "reward-3", "reward.other_one"}
        assert set(required) <= names <= {*required, *optional, *foreign}, task.name


def test_the_stages_in_order():
    assert list(build()) == ["data", "reward", "judge", "ppo", "infer-base", "infer-tuned", "compare", "report"]
    assert list(build(sft={"dataset": "a"})) == (
        ["data", "sft", "reward", "judge", "ppo", "infer-base", "infer-tuned", "infer-original", "compare", "report"]
    )
    assert list(build(compare={"judge": "reward"})) == (
        ["data", "reward", "ppo", "infer-base", "infer-tuned", "compare", "report"]
    )


def test_the_members_of_an_ensemble_differ_by_seed_alone_and_are_all_the_reward():
    tasks = build(reward={"members": 3}, seed=7)
    first, *others = (tasks[name] for name in ("reward", "reward-2", "reward-3"))
    assert [task.settings for task in (first, *others)] == [(), ("seed=9",), ("seed=10",)]
    assert all(task.inputs == first.inputs and task.stage == first.stage for task in others)
    for task in (tasks["ppo"], tasks["compare"]):
        assert stage_graph.members(task.inputs) == ["reward", "reward-2", "reward-3"]
    assert tasks["judge"].settings == ("seed=8",)


def test_members_are_read_in_the_order_of_their_numbers():
    assert stage_graph.members(
        ["reward-10", "judge", "reward-2", "model", "reward", "reward-0", "reward-1", "rewards"]
    ) == [
        "reward",
        "reward-2",
        "reward-10",
    ]


def test_without_sft_all_start_from_the_named_model():
    tasks = build()
    for name in ("reward", "judge", "ppo", "infer-base"):
        assert tasks[name].outside == {"model": "models/base"}
    assert tasks["infer-tuned"].outside == {"reference": "models/base"}


def test_with_sft_all_start_from_it_and_the_original_is_a_third_column():
    tasks = build(sft={"dataset": "a.jsonl"})
    for name in ("reward", "judge", "ppo", "infer-base"):
        assert tasks[name].inputs["model"] == "sft/model"
        assert tasks[name].outside == {}
    assert tasks["infer-tuned"].inputs["reference"] == "sft/model"
    assert tasks["infer-original"].outside == {"model": "models/base"}
    assert tasks["compare"].inputs["original"] == "predictions/original/text.jsonl"
    assert tasks["sft"].files == {"dataset ": ["a.jsonl"]}


def test_the_pairing_of_gcpc_goes_before_sft():
    tasks = build(large_model_reference="llama-2-13b", sft={"dataset": "a"})
    assert tasks["reward"].outside == tasks["judge"].outside == {"model": "llama-2-7b"}
    assert tasks["ppo"].inputs["model"] == "sft/model"
    assert build(large_model_reference="llama-2-7b", sft={"dataset": "a"})["reward"].outside == {}


def test_a_named_reward_model_goes_before_sft():
    tasks = build(reward_model_reference="models/base", sft={"dataset": "a"})
    assert tasks["reward"].outside == tasks["judge"].outside == {"model": "models/base"}


def test_the_judge_learns_from_its_own_share_with_a_seed_of_its_own():
    tasks = build(seed=3)
    assert tasks["judge"].settings == ("seed=4",)
    assert tasks["judge"].inputs["train"] == "data/preference/judge.jsonl"
    assert tasks["reward"].inputs["train"] == "data/preference/train.jsonl"
    assert build(compare={"judge_seed": 9})["judge"].settings == ("seed=9",)
    assert tasks["compare"].inputs["judge"] == "judge/model"


def test_a_reward_function_needs_no_reward_model():
    tasks = build(reward={"sources": "module:function"})
    assert "reward" not in tasks
    assert "reward" not in tasks["ppo"].inputs
    assert set(tasks["compare"].inputs) == {"a", "b", "judge", "score", "prompts"}


def test_a_reward_model_that_the_recipe_names_is_read_where_scores_are_made():
    parts = [{"source": "reward"}, {"source": "hub/Other-RM@main"}, {"source": "m:f"}]
    tasks = build(reward={"sources": parts, "members": 2})
    for name in ("ppo", "compare"):
        assert tasks[name].outside.get("reward.Other_RM") == "hub/Other-RM@main"
        assert stage_graph.members(tasks[name].inputs) == ["reward", "reward-2"]
    assert build(reward={"sources": parts}, method="rejection_sampling")["rejection"].outside["reward.Other_RM"]
    assert "reward" not in build(reward={"sources": parts[1:]})


def test_a_recipe_without_data_is_refused():
    with pytest.raises(UsageError, match="preference_dataset is missing"):
        build(preference_dataset=None)
    with pytest.raises(UsageError, match="prompt_dataset is missing"):
        build(preference_dataset=None, reward={"sources": "m:f"})


def test_a_command():
    assert " ".join(build()["judge"].command("runs/x")) == (
        "reward --recipe runs/x/recipe.yaml --set seed=1 --in model=models/base "
        "--in train=runs/x/data/preference/judge.jsonl --in validation=runs/x/data/preference/validation.jsonl "
        "--in test=runs/x/data/preference/test.jsonl --out runs/x/judge"
    )


WITHOUT_STAGE = {
    "large_model_reference",  # an input: its content counts
    "reward_model_reference",
    "device",  # the machine: recorded as a fact, and a resume elsewhere says that exactness is lost
    "threads",
    "processes",
    "shard",
    "deterministic",
    "gradient_checkpointing",
    "trust_remote_code",
    "checkpoint_every",
    "keep_checkpoints",
    "compare.judge_seed",  # becomes the judge's seed
    "reward.members",  # becomes as many stages
    "data.max_dropped",  # patience, memory and speed
    "sft.micro_batch_tokens",
    "reward.micro_batch_tokens",
    "ppo.micro_batch_tokens",
    "dpo.micro_batch_tokens",
    "rejection.micro_batch_tokens",
    "compare.micro_batch_tokens",
    "sampler.rows",
    "sampler.prefill_tokens",
    "chat_template",  # its content counts, as that of data does
}


def test_every_field_of_the_recipe_belongs_to_a_stage():
    leaves = {name for name in recipe.names() if not any(other.startswith(name + ".") for other in recipe.names())}
    used = {field for fields in stage_graph.FIELDS.values() for field in fields}
    assert used <= leaves
    assert leaves - used == WITHOUT_STAGE


def test_answers_depend_on_the_limits_of_a_score_only_where_it_chooses():
    infer = {"best_of": 2, "sampling_strategy": "temperature_sampling"}
    one, several = (recipe.parse({"large_model_reference": "x"} | values)[0] for values in ({}, {"infer": infer}))
    assert stage_graph.fields("infer", one) == stage_graph.FIELDS["infer"]
    limits = {"reward.clip", "reward.overlong_tokens", "reward.overlong_penalty", "reward.missing_eos_score"}
    assert set(stage_graph.fields("infer", several)) == {*stage_graph.FIELDS["infer"], *limits}
    assert stage_graph.fields("compare", several) == stage_graph.FIELDS["compare"]


def test_what_can_be_extended_is_a_field_of_its_stage():
    for stage, fields in stage_graph.EXTENDABLE.items():
        assert set(fields) <= set(stage_graph.FIELDS[stage])
    assert set(stage_graph.FIELDS) == set(stage_graph.INPUTS) == {*STAGES, "data"}
