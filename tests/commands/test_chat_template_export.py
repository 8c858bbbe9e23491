"""Templates for other programs write what ours writes, on 200 chats each."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preferent.commands import chat_template_export
from preferent.data.tokenizer import Tokenizer
from preferent.data.tokenizer.chat_templates import ChatTemplate
from preferent.data.types import Message, Prompt

LLAMA2 = "{% if messages %}[INST] <<SYS>>{% endif %}"
"""Is taken for Llama 2's; its own text is not used."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ bos_token + '{{x}}' }}"
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</{{ message['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
COUNTS = "{% for message in messages %}{{ loop.index }}. {{ message['content'] }}\n{% endfor %}"
WORDS = ["yes", "no.", "{{ braces", "}} end", "\n\n", "Grüße", "字", '"quoted"', "[INST]", "<<SYS>>", "  ", "7", "\\n"]

ACTION = re.compile(r"\{\{ (.*?) \}\}", re.S)


def go(template: str, messages: list[dict[str, str]], system: str) -> str:
    """Evaluate the part of Go's text/template that Ollama's templates here use."""
    words = ACTION.split(template)
    tokens = [(bool(i % 2), word) for i, word in enumerate(words)]
    tree = _parse(iter(tokens))[0]
    return _render(tree, {"System": system, "Messages": messages}, {"$": {"Messages": messages}})


def _parse(tokens: Iterator[tuple[bool, str]]) -> tuple[list[Any], str]:
    """Nodes up to `end` or `else`, and which of those it was."""
    nodes: list[Any] = []
    for is_action, word in tokens:
        if not is_action:
            nodes.append(("text", word))
        elif word == "end" or word.startswith("else"):
            return nodes, word
        elif word.split()[0] in ("if", "range"):
            nodes.append(_block(word, tokens))
        else:
            nodes.append(("value", word))
    return nodes, ""


def _block(word: str, tokens: Iterator[tuple[bool, str]]) -> tuple[Any, ...]:
    kind, _, what = word.partition(" ")
    body, stop = _parse(tokens)
    other: list[Any] = []
    if stop == "else":
        other, _ = _parse(tokens)
    elif stop.startswith("else if"):
        other = [_block(stop.removeprefix("else "), tokens)]
    return kind, what, body, other


def _render(nodes: list[Any], dot: Any, names: dict[str, Any]) -> str:
    text = ""
    for kind, what, *parts in nodes:
        if kind == "text":
            text += what
        elif kind == "value":
            text += str(_value(what, dot, names))
        elif kind == "if":
            text += _render(parts[0] if _value(what, dot, names) else parts[1], dot, names)
        else:
            variables, _, source = what.rpartition(" := ")
            for i, item in enumerate(_value(source or what, dot, names)):
                found = names | ({variables.split(",")[0]: i} if variables else {})
                text += _render(parts[0], item, found)
    return text


def _value(words: str, dot: Any, names: dict[str, Any]) -> Any:
    if words == "eq (len (slice $.Messages $i)) 1":
        return len(names["$"]["Messages"][names["$i"] :]) == 1
    if words.startswith("eq "):
        left, right = words.removeprefix("eq ").split(" ")
        return _value(left, dot, names) == _value(right, dot, names)
    if words.startswith('"'):
        return json.loads(words)
    assert words.startswith("."), words
    return dot[words[1:]]


def with_template(folder: Path, tmp_path: Path, template: str | None) -> Tokenizer:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    return Tokenizer.load(tmp_path)


def chats(count: int) -> Iterator[tuple[tuple[Message, ...], str | None]]:
    """Random conversations that end with the user, half of them with a context."""
    draw = random.Random(7)
    for _ in range(count):
        words = [" ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(draw.choice((1, 1, 3, 5, 7)))]
        messages = tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(words))
        yield messages, draw.choice((None, " ".join(draw.choices(WORDS, k=3)) + "!"))


def shown(messages: tuple[Message, ...], context: str | None) -> list[dict[str, str]]:
    """What Ollama gives a template: a system text is among the messages too."""
    turns = [{"Role": message.role, "Content": message.content} for message in messages]
    return [{"Role": "system", "Content": context}, *turns] if context else turns


@pytest.mark.parametrize(("template", "bos"), [(LLAMA2, "<s>"), (CHATML, ""), (NO_SYSTEM, "<s>"), (NO_SYSTEM, "")])
def test_a_conversation_in_go_is_ours(tiny, tmp_path, template, bos):
    tokenizer = with_template(tiny, tmp_path, template)
    made = chat_template_export.go_template(tokenizer, bos, converses=True)
    for messages, context in chats(200):
        ours = tokenizer.text(Prompt(messages=messages, context=context), None)
        assert ours.removeprefix(bos) == go(made, shown(messages, context), context or "")
        assert not bos or ours.startswith(bos)


def test_a_plain_prompt_in_go_is_ours(tiny, tmp_path):
    tokenizer = with_template(tiny, tmp_path, None)
    made = chat_template_export.go_template(tokenizer, "<s>", converses=False)
    for messages, instruction in chats(200):
        ours = tokenizer.text(Prompt(input_text=messages[-1].content), instruction)
        assert ours == go(made, shown(messages, instruction), instruction or "")


def test_a_template_that_does_more_has_no_go_template(tiny, tmp_path):
    assert chat_template_export.go_template(with_template(tiny, tmp_path, COUNTS), "<s>", converses=True) is None


@pytest.mark.parametrize("llama2", [True, False])
def test_a_scored_conversation_in_jinja_is_ours(tiny, tmp_path, llama2):
    """Prompt, answer and EOS, as the ids say it; without the first BOS."""
    tokenizer = with_template(tiny, tmp_path, LLAMA2 if llama2 else None)
    for messages, instruction in chats(200):
        asked = messages if llama2 else messages[-1:]
        prompt = Prompt(messages=asked) if llama2 else Prompt(input_text=asked[0].content)
        ours = tokenizer.text(prompt, instruction).removeprefix("<s>") + (" " if llama2 else "") + "An answer.</s>"
        template = chat_template_export.score_template(llama2, instruction)
        said = (*asked, Message("assistant", "An answer."))
        assert ChatTemplate(template, "", {"bos_token": "<s>", "eos_token": "</s>"}).render(said) == ours
