"""Conversations through every stage: the template of the recipe, its variables, and the end of an answer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_models import GEMMA, IDS, TURN, make_model
from conftest import quiet_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from preferent import files
from preferent.cli.actions import do_check
from preferent.cli.arguments import parser
from preferent.commands import compare_runs
from preferent.config import recipe as recipes
from preferent.config import stage_graph
from preferent.config.recipe import Recipe
from preferent.data import datasets
from preferent.errors import DataError, UsageError
from preferent.evaluation.inference import generate, local_judge
from preferent.models import language_models
from preferent.models.world import World
from preferent.pipelines import finished_run
from preferent.rewards import scoring
from preferent.rewards.scoring import RewardModel
from preferent.rollouts import sampler
from preferent.rollouts.sampler import Prompts, rollout_params
from preferent.training import dpo, ppo, reward_model, sequences, sft

EOS, TURN_END = IDS["</s>"], IDS["<end_of_turn>"]
MOODY = TURN.replace("<model>", "<{{ mood }}>")


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Path]:
    """Conversations as demonstrations, preferences and prompts, and plain prompts."""
    turns = [[{"author": "user", "content": f"Ask {number}?"}] for number in range(8)]
    answers = {"candidate_0": " good", "candidate_1": " bad", "choice": 0}
    files.write_jsonl(tmp_path / "sft.jsonl", [{"messages": turn, "output_text": " good"} for turn in turns])
    files.write_jsonl(tmp_path / "pairs.jsonl", [{"messages": turn, **answers} for turn in turns])
    files.write_jsonl(tmp_path / "prompts.jsonl", [{"messages": turn} for turn in turns])
    files.write_jsonl(tmp_path / "plain.jsonl", [{"input_text": f"Ask {number}? "} for number in range(8)])
    return {path.stem: path for path in tmp_path.glob("*.jsonl")}


def pairs(rows: dict[str, Path]) -> dict[str, Path]:
    return dict.fromkeys(("train", "validation", "test"), rows["pairs"])


def recipe_of(rows: dict[str, Path], **values: Any) -> Recipe:
    steps = {"train_steps": 2, "batch_size": 4, "validation_every": 2, "learning_rate": 1e-3}
    base = {"sft": steps | {"dataset": str(rows["sft"])}, "dpo": steps, "reward_model_train_steps": 2}
    base |= {"reward": {"batch_size": 4, "validation_every": 2, "learning_rate": 1e-3, "lora_dim": 0}}
    return quiet_recipe(**base | {"prompt_sequence_length": 64} | values)


@pytest.mark.parametrize("prompts", ["prompts", "plain"])
@pytest.mark.parametrize("always", ["<end_of_turn>", "</s>"])
def test_infer_ends_where_generate_of_transformers_ends(
    rows: dict[str, Path], tmp_path: Path, always: str, prompts: str
) -> None:
    folder = make_model(tmp_path / "model", always, **GEMMA)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = tokenizer("Ask 1?", return_tensors="pt").input_ids
    with torch.no_grad():
        answer = model.generate(asked, max_new_tokens=12, do_sample=False)[0, asked.shape[1] :]
    assert answer.tolist() == [IDS[always]]
    generate.main(recipe_of(rows), {"model": folder, "prompts": rows[prompts]}, tmp_path / "out")
    answered = files.read_jsonl(tmp_path / "out/text.jsonl")
    assert [(row["prediction"], row["tokens"], row["ended"]) for row in answered] == [("", 1, True)] * 8


def test_a_token_that_nothing_names_as_an_end_is_none(rows: dict[str, Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "<end_of_turn>", None)
    generate.main(recipe_of(rows), {"model": folder, "prompts": rows["plain"]}, tmp_path / "out")
    answered = files.read_jsonl(tmp_path / "out/text.jsonl")
    assert [(row["tokens"], row["ended"]) for row in answered] == [(12, False)] * 8


def test_an_answer_that_ends_with_its_turn_keeps_its_score(rows: dict[str, Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "<end_of_turn>", **GEMMA)
    recipe = recipe_of(rows, reward={"missing_eos_score": -7.0})
    policy = language_models.load_policy(folder, World.of(recipe))
    prompts = Prompts.of(datasets.load_prompts(rows["prompts"]), policy.tokenizer, recipe)
    rollouts = sampler.make(recipe, policy).sample(prompts.ids, range(8), "rollout", 0, rollout_params(recipe))
    assert [row.ids.tolist() for row in rollouts] == [[TURN_END]] * 8 and all(row.ended for row in rollouts)
    for row in rollouts:
        row.scores["reward"] = 1.0
    scale = scoring.ScoreNormalization.of(recipe, 1)
    scale.fit({"reward": np.array([0.0])}, "bias")
    assert (scoring.final_scores(rollouts, scale, recipe) > 0).all()


@pytest.mark.parametrize(("name", "end"), [("sft", TURN_END), ("plain", EOS)])
def test_a_demonstration_is_closed_by_what_ends_its_turn(
    rows: dict[str, Path], tmp_path: Path, name: str, end: int
) -> None:
    plain = [row | {"output_text": " good"} for row in files.read_jsonl(rows["plain"])]
    files.write_jsonl(rows["plain"], plain)
    recipe = recipe_of(rows)
    policy = language_models.load_policy(make_model(tmp_path / "model", None, **GEMMA), World.of(recipe))
    learnt = sequences.read(recipe, policy, [str(rows[name])], 32)
    assert {int(ids[-1]) for ids in learnt.ids} == {end}


def test_pairs_of_reward_model_and_dpo_are_closed_by_what_ends_a_turn(rows: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(rows)
    policy = language_models.load_policy(make_model(tmp_path / "model", None, **GEMMA), World.of(recipe))
    preferences = datasets.load_preferences(rows["pairs"])
    both = reward_model.encoded(recipe, preferences, policy.tokenizer, training=True)
    direct = dpo.PreferencePairs.of(preferences, policy.tokenizer, recipe)
    for encoded in (both, direct):
        assert {int(ids[-1]) for ids in (*encoded.chosen, *encoded.rejected)} == {TURN_END}


def test_a_reward_model_that_reads_texts_closes_ended_answers_as_it_learnt_to(
    rows: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(rows)
    source = make_model(tmp_path / "model", None, **GEMMA)
    scorer = language_models.load_scorer(source, World.of(recipe), 0, seed=1)
    reward, tokenizer = RewardModel.of(scorer, recipe), scorer.tokenizer
    asked = datasets.load_prompts(rows["prompts"])[:2]
    ids = [np.asarray(tokenizer.encode_prompt(prompt, None, 64)[0], np.int32) for prompt in asked]
    closed = [np.asarray(tokenizer.encode_answer(prompt, None, " good", 12)[0], np.int32) for prompt in asked]
    assert [row[-1] for row in closed] == [TURN_END] * 2
    expected = reward.score_ids(ids, [closed[0], closed[1][:-1]])
    texts = [tokenizer.text(prompt, None) for prompt in asked]
    assert np.array_equal(reward.score_texts(texts, [" good"] * 2, asked, [True, False]), expected)


@pytest.fixture
def template(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "mine.jinja").write_text(MOODY)
    return {"chat_template": str(tmp_path / "mine.jinja"), "chat_template_kwargs": {"mood": "kind"}}


STAGES = {"sft": sft.main, "reward": reward_model.main, "dpo": dpo.main, "infer": generate.main}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_by_the_recipes_template_saves_it_and_refuses_to_go_on_by_another(
    rows: dict[str, Path], template: dict[str, Any], tmp_path: Path, stage: str
) -> None:
    base, out = make_model(tmp_path / "base", None, None), tmp_path / "out"
    inputs = {"model": base} | {"sft": {}, "infer": {"prompts": rows["prompts"]}}.get(stage, pairs(rows))
    with pytest.raises(DataError, match=r"chat_template: FILE"):
        STAGES[stage](recipe_of(rows), inputs, tmp_path / "without")
    STAGES[stage](recipe_of(rows, **template), inputs, out)
    described = files.read_json(out / "stage.json")
    assert described["fields"]["chat_template_kwargs.mood"] == "kind"
    assert set(described["inputs"]) - set(inputs) == {"chat_template 0"} | ({"dataset 0"} if stage == "sft" else set())
    if stage == "infer":
        asked = {row["inputs"]["inputs_pretokenized"] for row in files.read_jsonl(out / "text.jsonl")}
        assert all(text.endswith("<end_of_turn>\n<kind>") for text in asked)
        return  # it is done again, as the next test shows
    assert (out / "model/chat_template.jinja").read_text() == MOODY
    assert AutoTokenizer.from_pretrained(out / "model").chat_template == MOODY
    assert files.read_json(out / "model/generation_config.json")["eos_token_id"] == [EOS, TURN_END]
    with pytest.raises(UsageError, match=r"chat_template_kwargs.mood: was 'kind', is now 'wild'"):
        STAGES[stage](recipe_of(rows, **template | {"chat_template_kwargs": {"mood": "wild"}}), inputs, out)
    (tmp_path / "mine.jinja").write_text(MOODY + " ")
    with pytest.raises(UsageError, match=r"input chat_template 0: its content changed"):
        STAGES[stage](recipe_of(rows, **template), inputs, out)


def test_answers_are_given_again_where_template_or_ends_changed(
    rows: dict[str, Path], template: dict[str, Any], tmp_path: Path
) -> None:
    base, out = make_model(tmp_path / "base", "<|end|>", None), tmp_path / "out"
    inputs, tokens = {"model": base, "prompts": rows["prompts"]}, []
    for change in ("", "template", "ends"):
        if change == "template":
            (tmp_path / "mine.jinja").write_text(MOODY.replace("<{{", "[{{"))
        if change == "ends":
            (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, IDS["<|end|>"]]}))
        generate.main(recipe_of(rows, **template), inputs, out)
        row = files.read_jsonl(out / "text.jsonl")[0]
        tokens.append((row["inputs"]["inputs_pretokenized"][-6:], row["tokens"]))
    assert tokens == [("<kind>", 12), ("[kind>", 12), ("[kind>", 1)]


def test_models_that_a_recipe_only_names_read_in_their_own_template(
    rows: dict[str, Path], template: dict[str, Any], tmp_path: Path
) -> None:
    foreign = make_model(tmp_path / "foreign", None)
    judge = {"name": "house", "model": str(foreign), "explanation": False}
    recipe = recipe_of(rows, **template, compare={"judges": [judge]})
    loaded = local_judge.LocalModelJudge.load(recipe.compare.judges[0], recipe, foreign, World.of(recipe))
    asked = datasets.load_prompts(rows["prompts"])[0]
    assert loaded.policy.tokenizer.text(asked, None).endswith("<model>")
    assert language_models.load_policy(foreign, World.of(recipe)).tokenizer.text(asked, None).endswith("<kind>")
    reward_model.main(recipe_of(rows), {"model": foreign, **pairs(rows)}, tmp_path / "other")
    named = {"sources": [{"source": str(tmp_path / "other/model"), "name": "other"}]}
    inputs = {"reward.other": tmp_path / "other/model"}
    reward = scoring.CombinedReward.load(recipe_of(rows, **template, reward=named), inputs, World.of(recipe))
    (source,) = reward.sources.values()
    assert isinstance(source, RewardModel) and source.scorer.tokenizer.text(asked, None).endswith("<model>")


def test_every_stage_that_reads_conversations_depends_on_the_template(template: dict[str, Any]) -> None:
    values = {"preference_dataset": "p", "sft": {"dataset": "s"}, "large_model_reference": "m"}
    for method in ("reinforcement_learning", "dpo", "rejection_sampling"):
        tasks = stage_graph.build(recipes.parse(values | template | {"method": method})[0])
        reading = {task.stage for task in tasks if "chat_template " in task.files}
        assert reading == {task.stage for task in tasks} - {"data", "report"}
        assert all("chat_template_kwargs" in stage_graph.FIELDS[stage] for stage in reading)


def test_a_run_with_ppo_reads_and_saves_by_the_recipes_template_and_is_tried_elsewhere(
    rows: dict[str, Path], template: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, run = make_model(tmp_path / "base", None, None), tmp_path / "run"
    values = {
        "ppo": {"batch_size": 4, "lora_dim": 2},
        "reinforcement_learning_train_steps": 1,
        "preference_dataset": str(rows["pairs"]),
    }
    recipe = recipe_of(rows, **template, **values, large_model_reference=str(base))
    reward_model.main(recipe, {"model": base, **pairs(rows)}, run / "reward")
    parts = dict.fromkeys(("train", "validation"), rows["prompts"])
    ppo.main(recipe, {"model": base, "reward": run / "reward/model", **parts}, run / "policy")
    assert (run / "policy/model/chat_template.jinja").read_text() == MOODY
    files.write_atomic(run / "recipe.yaml", recipes.dump(recipe))
    (tmp_path / "mine.jinja").unlink()
    finished = finished_run.of(run)
    world = World.of(finished.recipe)
    asked = datasets.load_prompts(rows["prompts"])[0]
    for folder in (finished.tuned, base):
        assert language_models.load_policy(folder, world).tokenizer.text(asked, None).endswith("<kind>")
    tuned = language_models.load_policy(finished.tuned, world)
    assert language_models.has_base(tuned, base)
    assert tuned.tokenizer.end_ids == {EOS, TURN_END}


def test_people_are_asked_about_base_and_tuned_model_by_the_runs_template(
    make_run: Any, rows: dict[str, Path], template: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base has no template of its own; a model beside a run reads by its own one."""
    prompt = {"messages": [{"author": "user", "content": "the cat"}]}
    run = make_run(prompt=prompt, prompt_dataset="p.jsonl", **template)
    words: list[tuple[str, ...]] = []
    monkeypatch.setattr(compare_runs, "do", lambda *command: words.append(command))
    compare_runs.sample_of_run(run, tmp_path / "asked", None)
    saved = f"chat_template={json.dumps(str(run / 'policy/model/chat_template.jinja'))}"
    assert len(words) == 2 and all(saved in command for command in words)
    base = recipes.load(tmp_path / "asked/recipe.yaml")[0]
    assert (base.chat_template, base.chat_template_kwargs) == (None, {"mood": "kind"})


def test_data_check_counts_conversations_for_a_model_without_a_template(
    rows: dict[str, Path], template: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_model(tmp_path / "base", None, None)
    words = ["data", "check", str(rows["pairs"]), "--model", str(base)]
    with pytest.raises(DataError, match="rows cannot be used"):
        do_check(parser().parse_args(words))
    assert "chat_template: FILE" in capsys.readouterr().out
    do_check(parser().parse_args([*words, "--chat-template", template["chat_template"]]))
    assert "prompt tokens: longest" in capsys.readouterr().out
