"""Chat templates: letter by letter what transformers renders, a bound on their work, and the end of an answer."""

import datetime
import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from chat_models import NAMED, make_folder

from preferent.config import recipe
from preferent.data.tokenizer import Tokenizer, template_environment
from preferent.data.tokenizer.chat_templates import ChatOptions, ChatTemplate
from preferent.data.types import Message, Prompt
from preferent.errors import DataError, PlatformError, UsageError

HERE = Path(__file__).parent
TEMPLATES = yaml.safe_load((HERE / "chat_templates.yaml").read_text(encoding="utf-8"))
ASKED = Message("user", "  What's “tea” (茶)?\n\nSay <b>it</b> & \\ 'so'.  ")
ANSWERED = Message("assistant", "<think>\nhm\n</think>\n\nA drink. ")
CONVERSATIONS = {
    "one turn": ((ASKED,), None),
    "with a system text": ((ASKED,), " Be brief.\n"),
    "three turns": ((ASKED, ANSWERED, Message("user", "More")), None),
    "nine turns with a system text": ((*(ASKED, ANSWERED) * 4, Message("user", "")), "Be kind."),
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "qwen with thinking": {"enable_thinking": False},
    "granite": {"thinking": True},
    "arguments": {"enable_thinking": True, "options": {"depth": [1, 2]}, "bos_token": "<mine>", "builtin_tools": ["a"]},
    "mistral": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    "command r": {"documents": [{"title": "T", "text": "é"}], "tools": [{"name": "f"}]},
}
SITUATIONS = [(family, {}) for family in TEMPLATES] + list(ARGUMENTS.items())


def named(tokenizer: Tokenizer, *ids: int) -> list[str]:
    return [tokenizer._token(id) for id in ids]


class Today(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return template_environment.TODAY


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(
        make_folder(tmp_path_factory.mktemp("theirs") / "model")
    )


@pytest.fixture
def today(monkeypatch):
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    monkeypatch.setattr(chat_template_utils, "datetime", Today)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(("family", "arguments"), SITUATIONS, ids=[f"{f}{'+' * bool(a)}" for f, a in SITUATIONS])
def test_a_conversation_is_rendered_as_transformers_renders_it(
    tmp_path, theirs, today, family, arguments, conversation
):
    messages, context = CONVERSATIONS[conversation]
    turns = [{"role": message.role, "content": message.content} for message in messages]
    system = [] if context is None else [{"role": "system", "content": context}]
    tokenizer = Tokenizer.load(make_folder(tmp_path / "model", TEMPLATES[family]), ChatOptions(variables=arguments))
    settings = {"chat_template": TEMPLATES[family], "tokenize": False, "add_generation_prompt": True, **arguments}
    ours = tokenizer.text(Prompt(messages=messages, context=context), None)
    try:
        expected = theirs.apply_chat_template([*system, *turns], **settings)
    except jinja2.TemplateError:
        assert system, "only a system turn may be refused here"
        first = {"role": "user", "content": f"{context}\n\n{turns[0]['content']}"}
        expected = theirs.apply_chat_template([first, *turns[1:]], **settings)
    assert ours == expected
    assert ours, "an empty text compares nothing"


REFUSED = {
    "raised": "{{ raise_exception('no') }}",
    "a private name": "{% set ns = namespace(_x=1) %}",
    "a private name later": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "undefined": "{{ nothing.at.all }}",
    "a text and a number": "{{ 'a' + 1 }}",
    "a missing key": "{{ {'a': 1}['b'].c }}",
    "no such filter argument": "{{ messages|tojson(colour='red') }}",
    "a recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "another template": "{% include 'other.jinja' %}",
    "the insides of Python": "{{ ''.__class__.__mro__ }}",
    "a change of the messages": "{{ messages.append(1) }}",
    "division by zero": "{{ 1 / 0 }}",
    "text that nobody wrote": "{{ lipsum() }}",
}


@pytest.mark.parametrize("case", REFUSED)
def test_whatever_a_template_raises_is_a_refusal_at_the_row(tmp_path, case):
    tokenizer = Tokenizer.load(make_folder(tmp_path / "model", REFUSED[case]))
    with pytest.raises(DataError, match=r"rows.jsonl:3: the chat template refuses the conversation"):
        tokenizer.text(Prompt(messages=(ASKED,), source="rows.jsonl:3"), None)


@pytest.mark.parametrize(
    "broken",
    [
        "{% if",
        "{% nonsense %}",
        "{{ 'a' | nonsense }}",
        "{% for a in b %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    ],
)
def test_what_is_no_template_is_an_error_of_the_model_with_file_and_line(tmp_path, broken):
    tokenizer = Tokenizer.load(make_folder(tmp_path / "model", f"\n{broken}"))
    assert tokenizer.text(Prompt("plain"), None) == "plain"
    with pytest.raises(PlatformError, match=r"model/chat_template.jinja(:2)?: is not a chat template: "):
        tokenizer.text(Prompt(messages=(ASKED,), source="rows.jsonl:3"), None)


# The bound

ENDLESS = yaml.safe_load((HERE / "endless_templates.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", ENDLESS)
def test_a_rendering_has_a_bound_that_names_the_template(tmp_path, case, monkeypatch):
    monkeypatch.setattr(template_environment, "UNITS", template_environment.UNITS // 20)
    monkeypatch.setattr(template_environment, "UNITS_PER_ELEMENT", template_environment.UNITS_PER_ELEMENT // 20)
    tokenizer = Tokenizer.load(make_folder(tmp_path / "model", ENDLESS[case]))
    with pytest.raises(PlatformError, match=r"model/chat_template.jinja: the chat template takes more work") as raised:
        tokenizer.text(Prompt(messages=(ASKED,)), None)
    assert raised.value.exit_code == 3
    assert tokenizer.text(Prompt("plain"), None) == "plain"


QUADRATIC = """{% set ns = namespace(text='') %}{% for m in messages %}{% set ns.last = 0 %}{% for n in messages %}
{% if n.role == m.role and n.content != '' %}{% set ns.last = ns.last + 1 %}{% endif %}{% endfor %}
{% set ns.text = ns.text ~ m.content ~ ns.last %}{% endfor %}{{ ns.text }}"""


CASES = [(family, 400, 100) for family in TEMPLATES] + [("quadratic", 100, 10)]


@pytest.mark.parametrize(("family", "turns", "share"), CASES, ids=[family for family, *_ in CASES])
def test_no_template_of_a_family_comes_near_the_bound(family, turns, share, monkeypatch):
    for name in ("UNITS", "UNITS_PER_ELEMENT"):
        monkeypatch.setattr(template_environment, name, getattr(template_environment, name) // share)
    variables = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "", "unk_token": "", "image_token": ""}
    template = ChatTemplate(TEMPLATES.get(family, QUADRATIC), "place", variables)
    messages = [Message("assistant" if i % 2 else "user", "Some words. " * 20) for i in range(turns)]
    assert template.render([*messages, Message("user", "?")])


# Which template


def test_of_several_templates_the_default_or_the_one_for_tools_is_taken(tmp_path, theirs):
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config = {"tokenizer_config": NAMED | {"chat_template": several}}
    folder, asked = make_folder(tmp_path / "model", **config), Prompt(messages=(ASKED,))
    loaded = type(theirs).from_pretrained(folder)
    for variables in ({}, {"tools": [{"name": "f"}]}, {"tools": None}):
        expected = loaded.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, **variables)
        assert Tokenizer.load(folder, ChatOptions(variables=variables)).text(asked, None) == expected
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text("A")
    (folder / "chat_template.jinja").write_text("J")
    loaded = type(theirs).from_pretrained(folder)
    for variables in ({}, {"tools": [{"name": "f"}]}):
        expected = loaded.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, **variables)
        assert Tokenizer.load(folder, ChatOptions(variables=variables)).text(asked, None) == expected
    unnamed = make_folder(tmp_path / "unnamed", tokenizer_config=NAMED | {"chat_template": several[:1]})
    with pytest.raises(DataError, match="has no chat template"):
        Tokenizer.load(unnamed).text(asked, None)


def test_the_recipes_template_takes_the_place_of_the_models_and_is_saved(tmp_path):
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{{ mood }}{% endfor %}"
    )
    settings = {"chat_template": str(tmp_path / "mine.jinja"), "chat_template_kwargs": {"mood": "!"}}
    chat = ChatOptions.of(recipe.parse({"large_model_reference": "x", **settings})[0])
    for name, own in (("none", None), ("own", "OWN")):
        tokenizer = Tokenizer.load(make_folder(tmp_path / name, own), chat)
        assert tokenizer.text(Prompt(messages=(Message("user", "a"),)), None) == "<|im_start|>a<|im_end|>!"
        tokenizer.save(tmp_path / f"saved-{name}")
        again = Tokenizer.load(tmp_path / f"saved-{name}", ChatOptions(variables={"mood": "!"}))
        assert again.text(Prompt(messages=(Message("user", "a"),)), None) == "<|im_start|>a<|im_end|>!"
        assert again.fingerprint == tokenizer.fingerprint
        assert named(again, again.turn_end_id) == ["<|im_end|>"]
    fingerprints = {Tokenizer.load(tmp_path / "own", options).fingerprint for options in (chat, ChatOptions())}
    fingerprints |= {Tokenizer.load(tmp_path / "own", ChatOptions(variables={"mood": "?"})).fingerprint}
    assert len(fingerprints) == 3


def test_a_template_that_cannot_be_read_is_an_error_before_anything_starts(tmp_path):
    with pytest.raises(PlatformError, match=r"chat_template: .*none.jinja: cannot be read"):
        ChatOptions.of(recipe.parse({"large_model_reference": "x", "chat_template": str(tmp_path / "none.jinja")})[0])
    (tmp_path / "bad.jinja").write_text("\n{% if %}")
    with pytest.raises(PlatformError, match=r"bad.jinja:2: is not a chat template"):
        ChatOptions.of(recipe.parse({"large_model_reference": "x", "chat_template": str(tmp_path / "bad.jinja")})[0])


def test_names_that_apply_chat_template_takes_itself_are_no_variables():
    transformers = pytest.importorskip("transformers")
    import inspect

    own = set(inspect.signature(transformers.PreTrainedTokenizerBase.apply_chat_template).parameters)
    own -= {"self", "kwargs", "tools", "documents"}
    for name in own | {"messages"}:
        with pytest.raises(UsageError, match=f"chat_template_kwargs: {name} is an argument"):
            recipe.parse({"large_model_reference": "x", "chat_template_kwargs": {name: 1}})
    settings = recipe.assign({"large_model_reference": "x"}, ["chat_template_kwargs.enable_thinking=false"])
    assert recipe.parse(settings)[0].chat_template_kwargs == {"enable_thinking": False}


# The end

CLOSES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}CLOSE\n{% endfor %}"
    "{% if add_generation_prompt %}<me>{% endif %}"
)
TURN = CLOSES.replace("CLOSE", "<end_of_turn>")
MARKS = (
    "{% for m in messages %}{{ '<|assistant|>' if m.role == 'assistant' else '<|im_start|>' }}{{ m.content }}"
    "{% endfor %}"
)
BETWEEN = "{% for m in messages %}{{ m.content }}{{ '' if loop.last else '<|im_end|>' }}{% endfor %}"
BOTH = ["</s>", "<end_of_turn>"]
ENDS = {  # the template, the ids that the model's configuration names, what closes a turn, all ends
    "nothing says it": (None, {}, "</s>", ["</s>"]),
    "eos alone": (CLOSES.replace("CLOSE", "</s>"), {}, "</s>", ["</s>"]),
    "gemma": (TURN, {"generation_config": [2, 4]}, "<end_of_turn>", BOTH),
    "only the template says it": (TURN, {}, "<end_of_turn>", BOTH),
    "spaces before it": (CLOSES.replace("CLOSE", " \n<end_of_turn>"), {}, "<end_of_turn>", BOTH),
    "text alone": (CLOSES.replace("CLOSE", "###"), {}, "</s>", ["</s>"]),
    "only the configuration says it": (BETWEEN.replace("<|im_end|>", ""), {"config": [2, 4]}, "</s>", BOTH),
    "a mark of the next turn": (MARKS + "<|assistant|>", {}, "</s>", ["</s>"]),
    "two behind a last turn": (
        *(TEMPLATES["phi"], {"generation_config": [9]}),
        *("<|end|>", ["</s>", "<|end|>", "<|endoftext|>"]),
    ),
    "only between turns": (BETWEEN, {"generation_config": 6}, "<|im_end|>", ["</s>", "<|im_end|>"]),
    "generation before model": (None, {"generation_config": [2, 4], "config": [5]}, "</s>", BOTH),
    "numbers that are no ids": (None, {"generation_config": [True, "x", -1, 10**12, 4]}, "</s>", BOTH),
    "a template that refuses": ("{{ raise_exception('no') }}", {"config": 4}, "</s>", BOTH),
    "llama 2": ("<<SYS>>[INST]<end_of_turn>", {}, "</s>", ["</s>"]),
}


@pytest.mark.parametrize(("template", "ids", "closes", "ends"), ENDS.values(), ids=ENDS)
def test_an_answer_ends_where_model_or_template_say_and_a_turn_is_closed_as_the_template_does(
    tmp_path, template, ids, closes, ends
):
    changes = {name: {"eos_token_id": value} for name, value in ids.items()}
    tokenizer = Tokenizer.load(make_folder(tmp_path / "model", template, **changes))
    assert named(tokenizer, tokenizer.turn_end_id) == [closes]
    assert named(tokenizer, *sorted(tokenizer.end_ids)) == ends
    assert list(tokenizer.end_texts) == ends
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.end_ids, again.turn_end_id, again.fingerprint) == (
        tokenizer.end_ids, tokenizer.turn_end_id, tokenizer.fingerprint
    )  # fmt: skip
    assert (tmp_path / "saved/generation_config.json").exists() == (len(ends) > 1)


def test_answers_of_conversations_are_closed_by_the_turns_end_and_texts_by_eos(tmp_path):
    template = CLOSES.replace("CLOSE", "<end_of_turn>")
    tokenizer = Tokenizer.load(make_folder(tmp_path / "model", template, generation_config={"eos_token_id": [2, 4]}))
    asked, plain = Prompt(messages=(ASKED,)), Prompt("Q:")
    for prompt, end in ((asked, 4), (plain, 2)):
        ids, cut = tokenizer.encode_answer(prompt, None, " yes", 9)
        assert (ids[-1], cut) == (end, False)
        assert tokenizer.encode_answer(prompt, None, " yes</s><end_of_turn>", 9) == (ids, False)
        assert tokenizer.encode_answer(prompt, None, " yes", 4) == (ids[:4], True)
        assert (
            tokenizer.decode_answer(prompt, None, ids)
            == tokenizer.decode_answer(prompt, None, [*ids[:-1], 2])
            == " yes"
        )
    prompts = tokenizer.encode_prompts([asked, plain, asked], None, 99)
    assert [prompt.end for prompt in prompts] == [4, 2, 4]
    texts, ends = [prompt.text for prompt in prompts], [prompt.end for prompt in prompts]
    assert [ids[-1] for ids, _ in tokenizer.encode_answers(texts, ["a"] * 3, 9, ends)] == [4, 2, 4]


def test_the_pad_is_no_end_of_an_answer(tmp_path):
    several = {"generation_config": {"eos_token_id": [2, 0]}}
    loaded = Tokenizer.load(make_folder(tmp_path / "a", **several))
    assert named(loaded, loaded.pad_id) == ["<unk>"]
    config = {name: token for name, token in NAMED.items() if name != "unk_token"} | {"unk_token": None}
    closing = CLOSES.replace("CLOSE", "<pad>")
    loaded = Tokenizer.load(make_folder(tmp_path / "b", closing, tokenizer_config=config))
    assert (named(loaded, loaded.turn_end_id), loaded.pad_id in loaded.end_ids) == (["<pad>"], False)


def test_an_adapter_ends_where_its_base_does(tmp_path):
    base = make_folder(tmp_path / "base", generation_config={"eos_token_id": [2, 4]}, config={"eos_token_id": 2})
    adapter = {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
    folder = make_folder(tmp_path / "adapter", adapter_config=adapter)
    assert Tokenizer.load(folder).end_ids == Tokenizer.load(base).end_ids == {2, 4}


def test_null_is_no_token_also_after_saving(tmp_path):
    """Qwen's configuration names a first token that its tokenizer does not have."""
    config = {"tokenizer_config": NAMED | {"bos_token": None}, "config": {"bos_token_id": 5, "eos_token_id": 2}}
    folder = make_folder(tmp_path / "model", "{{ bos_token }}{{ messages[0].content }}", **config)
    tokenizer, asked = Tokenizer.load(folder), Prompt(messages=(Message("user", "a"),))
    tokenizer.save(tmp_path / "saved")
    (tmp_path / "saved/config.json").write_text(json.dumps(config["config"]))
    for loaded in (tokenizer, Tokenizer.load(tmp_path / "saved")):
        assert loaded.text(asked, None) == "a"
