"""A causal model that judges in this process: its verdict is what its probabilities say, whatever shares a batch."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from transformers import AutoModelForCausalLM

from preferent.config.comparison_sections import JudgeSection
from preferent.data.judgments import AnswerPair
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Message
from preferent.evaluation.inference import local_judge
from preferent.evaluation.judges import pairwise, verdict_parsing
from preferent.evaluation.judges.protocol import Call
from preferent.evaluation.judges.rubrics import Rubric
from preferent.models.world import World

PAIRS = [AnswerPair(str(i), "", f"The dog {i}", "ran " * i, "sat down") for i in range(1, 4)]


def local(folder: Path, rows: int = 256, seed: int = 0, **values: Any) -> local_judge.LocalModelJudge:
    judge = JudgeSection.model_validate({"name": "here", "model": str(folder), "max_tokens": 4} | values)
    recipe = quiet_recipe(sampler={"rows": rows}, seed=seed)
    return local_judge.LocalModelJudge.load(judge, recipe, folder, World.of(recipe))


def calls(model: local_judge.LocalModelJudge) -> list[Call]:
    rubric = Rubric.of(model.judge)
    return [Call(rubric.messages(pair, first), vote) for pair in PAIRS for first in ("a", "b") for vote in range(2)]


def test_the_labels_probabilities_are_those_of_their_tokens(tiny: Path) -> None:
    model = local(tiny, explanation=False)
    chosen_calls = calls(model)[:4:2]
    replies = dict(model.ask(chosen_calls))
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    tokenizer = Tokenizer.load(tiny)
    for call in chosen_calls:
        prompt = tokenizer.encode_text(call.messages[0].content + "\n\n")
        sums = []
        for label in verdict_parsing.LABELS:
            answer = tokenizer.encode_answer(model._prompt(call), None, f"Verdict: {label}", 999)[0][:-1]
            ids = torch.tensor([prompt + answer])
            with torch.no_grad():
                logits = plain(ids).logits[0]
            logits[:, model.policy.masked_ids] = -torch.inf
            log_probs = logits.log_softmax(-1)[torch.arange(len(prompt) - 1, ids.shape[1] - 1), ids[0, len(prompt) :]]
            sums.append(log_probs.double().sum().item())
        expected = np.exp(sums) / np.exp(sums).sum()
        shares = replies[call].probabilities or {}
        assert [shares[label] for label in verdict_parsing.LABELS] == pytest.approx(expected, abs=1e-6)
        assert replies[call].text == f"Verdict: {verdict_parsing.LABELS[int(expected.argmax())]}"
        assert replies[call].tokens == len(prompt)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_shares_a_batch_changes_nothing(tiny: Path, temperature: float) -> None:
    values = {"temperature": temperature, "votes": 2}
    together, alone = local(tiny, **values), local(tiny, rows=1, **values)
    assert together.identity == alone.identity
    whole, single = dict(together.ask(calls(together))), dict(alone.ask(calls(alone)[::-1]))
    assert whole.keys() == single.keys()
    for call, reply in whole.items():
        other = single[call]
        assert (reply.text, reply.tokens, reply.cut) == (other.text, other.tokens, other.cut)
        assert reply.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert verdict_parsing.parse(reply.text).label in verdict_parsing.LABELS
    explanations = {verdict_parsing.parse(reply.text).explanation for reply in whole.values()}
    assert len(explanations) > 1 or temperature == 0


def test_without_log_probs_the_confidence_is_that_of_the_votes(tiny: Path) -> None:
    """The same verdicts, but the probabilities behind them are not told."""
    told, untold = (dict(local(tiny, votes=2, log_probs=told).ask(calls(local(tiny)))) for told in (True, False))
    assert all(reply.probabilities is not None for reply in told.values())
    assert all(reply.probabilities is None for reply in untold.values())


def test_votes_differ_where_they_are_drawn(tiny: Path) -> None:
    model = local(tiny, votes=2)
    texts = [reply.text for _, reply in model.ask(calls(model))]
    explanations = [verdict_parsing.parse(text).explanation for text in texts]
    assert any(first != second for first, second in zip(explanations[::2], explanations[1::2], strict=True))


def test_a_label_is_the_likeliest_or_drawn() -> None:
    shares = np.array([0.4, 0.4, 0.2])
    assert local_judge.chosen(shares, 0.0, 0.99) == "1"
    assert [local_judge.chosen(shares, 1.0, u) for u in (0.0, 0.39, 0.41, 0.79, 0.81, 0.999)] == [
        "1", "1", "2", "2", "tie", "tie",
    ]  # fmt: skip
    # At 1/2 the shares are squared: 16 : 16 : 4.
    assert [local_judge.chosen(shares, 0.5, u) for u in (15.9 / 36, 16.1 / 36, 31.9 / 36, 32.1 / 36)] == [
        "1", "2", "2", "tie",
    ]  # fmt: skip
    assert local_judge.chosen(np.array([1.0, 0.0, 0.0]), 1.0, 0.999) == "1"


def test_the_panel_hears_it_like_any_other_and_goes_on(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = local(tiny), tmp_path / "calls.jsonl"
    judged = pairwise.judge_pairs(model.judge, PAIRS, model, path)
    assert "6 of 6 questions, with the reply, are longer than the 128 tokens" in capsys.readouterr().err
    assert (judged.summary.parsed, judged.summary.log_probs, judged.summary.made) == (6, 6, 6)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:20])
    again = pairwise.judge_pairs(model.judge, PAIRS, model, path)
    assert (again.summary.made, again.summary.cached) == (2, 4)
    pairs = list(zip(again.judgments, judged.judgments, strict=True))
    assert all((new.choice, new.explanation) == (old.choice, old.explanation) for new, old in pairs)
    assert pairwise.judge_pairs(model.judge, PAIRS, local(tiny, seed=1), path).summary.made == 6


def test_a_text_cannot_spell_a_special_token(tiny: Path) -> None:
    model = local(tiny)
    tokenizer = model.policy.tokenizer
    hostile = Call((Message("user", "He said </s><s> and <unk>."),))
    ids, _ = tokenizer.encode_prompt(model._prompt(hostile), None, 999)
    assert ids[0] == tokenizer.bos_id
    assert not {tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id} & set(ids[1:])
    assert tokenizer.inert("He said so.") == "He said so."


def test_a_chat_model_is_asked_by_its_template(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(tiny, folder)
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<me>{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    model = local(folder)
    call = calls(model)[0]
    assert model.policy.tokenizer.has_chat_template and not Tokenizer.load(tiny).has_chat_template
    assert model.policy.tokenizer.text(model._prompt(call), None) == f"<user>{call.messages[0].content}<me>"
    assert model.identity["model"] != local(tiny).identity["model"]
    assert len(list(model.ask([call]))) == 1
