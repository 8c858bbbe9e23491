"""Base and tuned model side by side: they answer as `infer` does, of every kind of run, and a terminal is safe."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console

from preferent.commands.inference import chat
from preferent.config.recipe import Recipe
from preferent.data.types import Message, Prompt
from preferent.errors import UsageError
from preferent.evaluation.inference import generate
from preferent.models import language_models
from preferent.models.world import World
from preferent.pipelines import finished_run
from preferent.rewards import scoring
from preferent.rewards.normalization import ScoreNormalization
from preferent.rewards.scoring import RewardModel
from preferent.rollouts import sampler

LLAMA2 = "{% if messages %}[INST] <<SYS>>{% endif %}"
CHAT = {"messages": [{"author": "user", "content": "the cat"}]}
LINES = ["the old man", "a silver key "]


def call(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "preferent", "try", str(folder), *words]
    return subprocess.run(argv, input=text, capture_output=True, text=True, env=None)


def answers(recipe: Recipe, source: Path, asked: list[Prompt]) -> list[dict]:
    """What `infer` writes."""
    policy = language_models.load_policy(source, World.of(recipe))
    return generate.answered(recipe, policy, None, sampler.make(recipe, policy), asked, range(len(asked)))


def pair_of(folder: Path, temperature: float | None = None) -> chat.ChatTurn:
    found = finished_run.of(folder)
    return chat.load(found, found.recipe, chat.decoding_params(found.recipe, temperature, greedy=False))


@pytest.mark.parametrize(("rank", "sft", "chat"), [(0, False, False), (0, True, False), (2, True, True)])
def test_answers_are_those_of_infer(make_run, tiny, rank, sft, chat):
    folder = make_run(rank, sft, CHAT if chat else None, instruction="Tell more.", prompt_sequence_length=90)
    if chat:
        for name in ("policy", "sft", "reward"):
            (folder / name / "model/chat_template.jinja").write_text(LLAMA2)
    pair, recipe = pair_of(folder), finished_run.of(folder).recipe
    asked = [Prompt(messages=(Message("user", line),)) if chat else Prompt(input_text=line) for line in LINES]
    sources = (folder / "sft/model" if sft else tiny, folder / "policy/model")
    base, tuned = ([row["prediction"] for row in answers(recipe, source, asked)] for source in sources)
    found = [pair.answers(line, item) for item, line in enumerate(LINES)]
    assert [(one.text, other.text) for one, other in found] == list(zip(base, tuned, strict=True))
    assert base != tuned


def test_a_row_of_data_asks_its_prompt(make_run):
    pair = pair_of(make_run())
    assert pair.prompt('{"input_text": "one\\ntwo", "reference": "R"}').input_text == "one\ntwo"
    assert pair.prompt('{"prompt": "Q", "chosen": "A", "rejected": "B"}').input_text == "Q"
    for line in ('{"a": 1}', '{"input_text": 1}', "{", "[1]", "\udcff"):
        assert pair.prompt(line).input_text == line


def test_one_token_is_no_tokens():
    assert chat.facts(chat.ChatAnswer(".", True, 1, None)) == "1 token"


def test_an_answer_without_text_says_so():
    assert chat.facts(chat.ChatAnswer("", True, 1, None)) == "1 token, no text: it ended at once"
    assert chat.facts(chat.ChatAnswer(" ", False, 4, None)) == "4 tokens, did not end, no text"


def test_a_terminal_is_told_what_the_prompts_of_the_run_end_like(monkeypatch, capsys, make_run):
    folder = make_run()
    first = finished_run.of(folder).first_prompt()
    assert first is not None and first.input_text
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(Console, "input", Mock(side_effect=["the cat", " ", EOFError]))
    assert list(chat.lines(Console(width=200), first)) == ["the cat"]
    assert f"on prompts like this one: “{first.input_text}”" in capsys.readouterr().out


def test_what_a_prompt_ends_like_is_its_last_letters():
    assert chat.ending(Prompt(input_text="One\ntwo\x1b ")) == "“One⏎two\N{REPLACEMENT CHARACTER} ”"
    long = chat.ending(Prompt(messages=(Message("system", "Be brief."), Message("user", "a" * 80 + "b"))))
    assert long == "“…" + "a" * 78 + "b”"


def test_the_score_is_what_ppo_sees(make_run):
    folder = make_run()
    pair = pair_of(folder)
    answer = pair.answers(LINES[0], 0)[1]
    reward = RewardModel.load(folder / "reward/model", pair.recipe, pair.tuned.world)
    prompt = Prompt(input_text=LINES[0])
    ids = pair.tuned.tokenizer.encode_prompt(prompt, None, 32)[0]
    sampled = pair.samplers[1].sample([np.asarray(ids)], [0], "infer", 0, pair.params)
    raw = reward.score_ids([np.asarray(ids)], [sampled[0].ids])[0]
    rollouts = [dataclasses.replace(sampled[0], scores={"reward": float(raw)})]
    assert answer.score == pytest.approx(scoring.final_scores(rollouts, pair.reward.scale, pair.recipe)[0], abs=1e-5)
    assert not answer.ended and answer.score == pair.recipe.reward.missing_eos_score
    assert answer.tokens == len(sampled[0].ids)


def test_the_asked_choice_of_tokens(make_run):
    recipe = finished_run.of(make_run(sampler={"temperature": 0.7})).recipe
    assert chat.decoding_params(recipe, None, greedy=False).greedy
    warm = chat.decoding_params(recipe, 1.5, greedy=False)
    assert (warm.greedy, warm.temperature, warm.max_tokens) == (False, 1.5, 12)
    sampling = recipe.model_copy(update={"infer": recipe.infer.model_copy(update={"sampling_strategy": "t"})})
    assert not chat.decoding_params(sampling, None, greedy=False).greedy
    assert chat.decoding_params(sampling, None, greedy=False).temperature == 0.7
    assert chat.decoding_params(sampling, None, greedy=True).greedy


def test_the_score_is_that_of_all_members(make_run):
    pair = pair_of(make_run(reward={"members": 2, "missing_eos_score": None}))
    shown = pair.answers("the old man", 0)[1].score
    assert len(pair.reward.sources) == 2
    alone = []
    for name, member in pair.reward.sources.items():
        term = dataclasses.replace(pair.reward.scale.terms[0], members={name: pair.reward.scale.normalizer(name)})
        one = dataclasses.replace(pair.reward, sources={name: member}, scale=ScoreNormalization((term,)))
        alone.append(dataclasses.replace(pair, reward=one))
    each = [one.answers("the old man", 0)[1].score for one in alone]
    assert each[0] != each[1] and shown == pytest.approx(sum(each) / 2)


@pytest.mark.acceptance
def test_lines_in_answers_out(make_run):
    folder = make_run(2)
    done = call(folder, "the old man\n\n[bold]a key\n", "--tokens", "3", "--temperature", "2", "--seed", "5")
    assert done.returncode == 0, done.stderr
    for word in ("the old man", "[bold]a key", "base", "tuned", "score", "3 tokens"):
        assert word in done.stdout
    assert done.stdout.count("tuned") == 2
    assert call(folder, "the old man\n", "--tokens", "3", "--temperature", "2", "--seed", "6").stdout not in done.stdout


@pytest.mark.acceptance
def test_mistakes(make_run, tmp_path):
    folder = make_run(reward={"sources": "some:function"})
    assert pair_of(folder).reward is None, "a function needs no model"
    with pytest.raises(UsageError, match="152 tokens"):
        chat.talk(folder, None, False, 120, None)
    done = call(tmp_path, "")
    assert done.returncode == 2 and "is not a run directory" in done.stderr and "Traceback" not in done.stderr
    for words in (("--temperature", "0"), ("--tokens", "0"), ("--temperature", "1", "--greedy")):
        assert call(folder, "", *words).returncode == 2


def test_an_answer_cannot_command_the_terminal():
    assert chat.readable("a\x1b[2Jb\r\n\tc字") == "a�[2Jb�\n\tc字"
