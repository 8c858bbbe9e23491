"""Chat templates: letter by letter what transformers renders, a bound on their work, and the end of an answer."""

import datetime
import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from preferent.config import recipe
from preferent.data.tokenizer import Tokenizer, template_environment
from preferent.data.tokenizer.chat_templates import ChatOptions, ChatTemplate
from preferent.data.types import Message, Prompt
from preferent.errors import DataError, PlatformError, UsageError

SPECIAL = (
    *("<pad>", "<s>", "</s>", "<unk>", "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<image>", "<|end|>"),
    *("<|endoftext|>", "<|assistant|>", "<|reserved|>"),
)
NAMED = {
    "bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True}, "unk_token": "<unk>",
    "pad_token": "<pad>", "sep_token": None, "additional_special_tokens": ["<|end|>"],
    "extra_special_tokens": {"image_token": "<image>"}, "add_bos_token": False,
}  # fmt: skip

# Templates in the style of families, each using what that family's use.
TEMPLATES = {
    "chatml with generation tags": """
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{% set said = message['content'] %}{{ said + '<|im_end|>' }}{% endgeneration %}

    {%- else %}
{{ '<|im_start|>' ~ message.role ~ '\n' ~ message['content'] ~ '<|im_end|>\n' }}
    {%- endif %}
{{ said }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('a system turn is not known') }}
{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('turns must alternate') }}{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    "llama 3": """{%- if not date is defined %}{% set date = strftime_now("%d %b %Y") %}{% endif -%}
{% set head = '' %}{% if messages[0].role == 'system' %}{% set head = messages[0].content|trim %}
{% set messages = messages[1:] %}{% endif %}
{{- bos_token + "<|start|>system<|stop|>\n\nToday: " + date + "\n" }}{% if tools is not none %}{{ tools }}{% endif %}
{{- head + '</s>' }}{% for m in messages %}{% set turn = '<|start|>' + m['role'] + '<|stop|>\n\n' + m.content|trim %}
{%- if loop.index0 == 0 %}{% set turn = '>' + turn %}{% endif %}{{ turn + '</s>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}""",
    "mistral": """{%- set rest = messages %}{%- if messages[0]["role"] == "system" %}{%- set system = rest[0]["content"] %}
{%- set rest = rest[1:] %}{%- endif %}{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set users = rest | selectattr("role", "equalto", "user") | list %}{%- set ns = namespace(index=0) %}
{%- for m in rest %}{%- if (m.role == "user") != (ns.index % 2 == 0) %}{{- raise_exception("roles alternate") }}
{%- endif %}{%- set ns.index = ns.index + 1 %}{%- endfor %}{{- bos_token }}{%- for m in rest %}
{%- if m.role == "user" %}{%- if tools is not none and (m == users[-1]) %}{{- "[AVAILABLE_TOOLS] [" }}
{%- for tool in tools %}{{ tool | tojson }}{%- endfor %}{{- "][/AVAILABLE_TOOLS]" }}{%- endif %}
{%- if loop.last and system is defined %}{{- "[INST] " + system + "\n\n" + m.content + "[/INST]" }}
{%- else %}{{- "[INST] " + m.content + "[/INST]" }}{%- endif %}
{%- elif m.role == "assistant" %}{{- " " + m["content"]|trim + eos_token }}{%- endif %}{%- endfor %}""",
    "phi": """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}
{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}
{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}
{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "qwen with thinking": """{%- set ns = namespace(last=messages|length - 1, waits=true) %}{%- for m in messages[::-1] %}
{%- set at = (messages|length - 1) - loop.index0 %}{%- if ns.waits and m.role == "user" and m.content is string
 and not(m.content.startswith('<tool>') and m.content.endswith('</tool>')) %}{%- set ns.waits = false %}
{%- set ns.last = at %}{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role == "assistant" %}
{%- set content, thought = m.content, '' %}{%- if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
{%- elif '</think>' in content %}{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<think>' + thought.strip('\n') + '</think>' }}{% endif %}
{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}{%- else %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}""",
    "deepseek with a prefill": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% set ns = namespace(system='', first=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}
{%- if ns.first %}{% set ns.system = ns.system + message['content'] %}{% set ns.first = false %}{%- else %}
{% set ns.system = ns.system + '\n\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor -%}
{{ bos_token }}{{ ns.system }}{%- for m in messages %}{% if m.role == 'user' %}{{'<|User|>' + m['content']}}
{%- elif m['role'] == 'assistant' and m['content'] is not none %}{% set c = m['content'] %}
{%- if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + c + eos_token}}{% endif %}
{%- endfor -%}{% if add_generation_prompt %}{{'<|Assistant|><think>\n'}}{% endif %}""",
    "command r": """{{ bos_token }}{% if documents is none %}{{ 'nothing to read' }}{% else %}{% for d in documents %}
{{ 'Document: ' ~ loop.index0 ~ '\n' }}{% for key, value in d.items() %}{{ key }}: {{ value|string }}
{% endfor %}{% endfor %}{% endif %}{% if documents %}grounded{% endif %}{% if not documents %}free{% endif %}
{% for m in messages %}{{ '<|TURN|>' + m['role']|upper + ': ' + (m['content'] | default('', true)) }}{% endfor %}
{% if add_generation_prompt %}<|TURN|>{% endif %}{{ documents|tojson }}{{ tools | tojson(indent=2) }}""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "falcon": """{% for m in messages %}{% if loop.index > 6 %}{% break %}{% endif %}{% if not loop.first %}{{ '\n\n' }}{% endif %}
{% if m.role == 'system' %}{% continue %}{% endif %}{{ {'user': 'User: ', 'assistant': 'Falcon: '}[m.role] }}
{{- m['content'].replace('\r\n', '\n').replace('\n\n', '\n') }}{% endfor %}{{ '\n\nFalcon:' if add_generation_prompt }}""",
    "granite": """{%- set today = strftime_now('%B %d, %Y') %}{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}{%- else %}
{%- set system = "Knowledge: April.\nToday's Date: " + today + "." %}{%- set turns = messages %}{%- endif %}
{{- '<|role|>system' + system + '</s>\n' }}{%- if tools %}{{- tools | tojson(indent=4) }}{% endif %}
{%- for message in turns %}{{- '<|role|>' + message['role'] + message['content'] + '</s>\n' }}
{%- if loop.last and add_generation_prompt %}{{- '<|role|>assistant' }}{%- if thinking %}{{- ' (think)' }}{%- endif %}
{%- endif %}{%- endfor %}{{ '%s of %d' | format('turn', messages|count) }}{{ strftime_now('%Y-%m-%d %H:%M:%S %j') }}""",
    "vicuna": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}
{% set system_message = 'A curious person talks to a machine.' %}{% endif %}{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}
{% if loop.index0 == 0 %}{{ system_message }}{% endif %}{% if message['role'] == 'user' %}
{{ ' USER: ' + message['content'].strip() }}{% else %}{{ ' ASSISTANT: ' + message['content'].strip() + eos_token }}
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}""",
    "system ignored": """{{ bos_token }}{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}
{{ '### ' ~ m.role|capitalize ~ ':\n' ~ m.content }}{{ '' if loop.last else '\n\n' }}{% else %}nobody{% endfor %}""",
    "hermes with tojson": """{{ messages[0] | tojson(sort_keys=True) }}{{ messages | tojson(ensure_ascii=True) }}
{{ messages[0] | tojson(separators=(',', ':')) }}{{ messages[-1]|tojson(indent=3, sort_keys=true, separators=(', ', ' = ')) }}
{{ {'b': [1, 2.5, none, true], 'a': 'é<&>"'} | tojson }}{{ 'é' | tojson(True) }}{{ [] | tojson(indent=1) }}""",
    "smol with macros": """{% macro turn(role, text='') -%}[{{ role }}|{{ text }}|{{ varargs|length }}|{{ caller() if caller }}]
{%- endmacro %}{{ messages|map(attribute='content')|join(' + ') }}{% call turn('x') %}{{ bos_token }}{% endcall %}
{% for role, group in messages|groupby('role') %}{{ turn(role, group|length) }}{% endfor %}
{{ dict(a=1, **{'b': 2}) }}{{ dict.fromkeys(['k'], 3) }}{{ messages|rejectattr('role', 'in', ['user'])|list|length }}
{{ range(3)|list }}{{ [3, 1, 2]|sort|reverse|list }}{{ (messages|first).role }}{{ messages|sum(attribute='content', start='')
 if false }}{{ ['a', 'b']|batch(3, '-')|list }}{{ 'x' * 3 }}{{ [0] * 2 }}{{ 7 // 2 }}{{ 2 ** 5 }}{{ 7 % 4 }}{{ '%s!' % 'a' }}""",
    "tokens as globals": """{{ pad_token + '|' + unk_token + '|' + image_token + '|' + bos_token + '|' + eos_token }}
{{ sep_token }}{{ cls_token is defined }}{{ additional_special_tokens is defined }}{{ mask_token }}
{% for m in messages %}{{ m.content }}{{ eos_token if not loop.last }}{% endfor %}""",
    "blocks and loops": """{% set text %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ text|length }}
{% filter upper|trim %} {{ text[:5] }} {% endfilter %}{% for m in messages recursive %}{{ loop.depth }}{{ loop.cycle('a', 'b') }}
{{ loop.changed(m.role) }}{{ loop.previtem.role if loop.previtem }}{{ loop.nextitem.role if not loop.last }}
{% if m.role == 'system' %}{{ loop([{'role': 'inner', 'content': '1'}]) }}{% endif %}{% endfor %}
{% with total = messages|length %}{{ total }}{% endwith %}{{ nothing.there is defined if nothing is defined }}{{ nothing }}
{% generation %}{{ [1, 2, 3][1:]|string ~ '{:>5}'.format('a') }}{%- endgeneration -%} {% raw %}{{ raw }}{% endraw %}
{# a comment #}{{ 'a b'.split()|join('-') }}{{ 'abc'[::-1] }}{{ ('a', 1) }}{{ not 1 == 2 and 3 > 2 }}{{ 'z'|center(5) }}|""",
    "arguments": """{{ enable_thinking }}{{ reasoning_effort|default('low') }}{{ options.depth }}{{ bos_token }}
{% for m in messages %}{{ m.content }}{% endfor %}{% if builtin_tools %}{{ builtin_tools|join(', ') }}{% endif %}""",
}
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

ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "loops that select nothing": "{% set r = range(99999) %}"
    + "{% for a in r %}{% for b in r if b < 0 %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(200) }}",
    "calls": "{% macro f(n) %}{% if n %}{% call f(n - 1) %}{% endcall %}{% call f(n - 1) %}{% endcall %}{% endif %}{% endmacro %}{{ f(99) }}",
    "text": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "sums": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "blocks": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "lists in lists": "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    "lists as text": "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "a namespace as text": "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns }}",
    "lists compared": "{% set ns = namespace(x=[], y=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "repetition": "{{ 'a' * 10 ** 12 }}",
    "a list repeated": "{{ 10 ** 12 * [0] }}",
    "powers": "{{ 9 ** 9 ** 9 }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "filters of long lists": "{% set x = range(99999) %}{% for i in x %}{{ x|sum }}{% endfor %}",
    "lazy filters": "{% for i in range(99999) %}{{ range(99999)|map('string')|select('equalto', 'x')|list|length }}{% endfor %}",
    "a wide text": "{{ 'a'.ljust(10 ** 12) }}",
    "a wide filter": "{{ 'a'|center(10 ** 12) }}",
    "a wide format": "{{ '%999999999999d' % 1 }}",
    "a wide format method": "{{ '{:>999999999999}'.format(1) }}",
    "a wide format of a number": "{{ '{:>{w}}'.format(1, w=10 ** 12) }}",
    "a wide format filter": "{{ '%999999999999d'|format(1) }}",
    "a wide JSON": "{{ [1]|tojson(indent=10 ** 12) }}",
    "a wide date": "{{ strftime_now('%999999999999Y') }}",
    "slices": "{% set x = range(99999)|list %}{% for i in x %}{{ x[1:]|length }}{% endfor %}",
    "searches": "{% set x = 'a' * 99999 %}{% for i in range(99999) %}{{ 'b' in x }}{{ x.find('b') }}{% endfor %}",
    "tests": "{% set x = range(99999)|list %}{% for i in x %}{{ i is in x }}{% endfor %}",
    "joins": "{% set x = ['a' * 9999] * 9999 %}{{ x|join }}",
    "recursive loops": "{% set x = [1, 2] %}{% for a in x recursive %}{{ loop(x) }}{% endfor %}"
    if False
    else "{% set ns = namespace(x=[]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{% for a in ns.x recursive %}{{ loop(a) }}{% endfor %}",
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_rendering_has_a_bound_that_names_the_template(tmp_path, case):
    tokenizer = Tokenizer.load(make_folder(tmp_path / "model", ENDLESS[case]))
    with pytest.raises(PlatformError, match=r"model/chat_template.jinja: the chat template takes more work") as raised:
        tokenizer.text(Prompt(messages=(ASKED,)), None)
    assert raised.value.exit_code == 3
    assert tokenizer.text(Prompt("plain"), None) == "plain"


QUADRATIC = """{% set ns = namespace(text='') %}{% for m in messages %}{% set ns.last = 0 %}{% for n in messages %}
{% if n.role == m.role and n.content != '' %}{% set ns.last = ns.last + 1 %}{% endif %}{% endfor %}
{% set ns.text = ns.text ~ m.content ~ ns.last %}{% endfor %}{{ ns.text }}"""


@pytest.mark.parametrize("family", [*TEMPLATES, "quadratic"])
def test_no_template_of_a_family_comes_near_the_bound(family, monkeypatch):
    """The bound is a hundredth here: a template may do a hundred times what these do, also with long conversations."""
    monkeypatch.setattr(template_environment, "UNITS", template_environment.UNITS // 100)
    monkeypatch.setattr(template_environment, "UNITS_PER_LETTER", template_environment.UNITS_PER_LETTER // 100)
    variables = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "", "unk_token": "", "image_token": ""}
    template = ChatTemplate(TEMPLATES.get(family, QUADRATIC), "place", variables | {"options": {}})
    turns = 40 if family == "quadratic" else 400
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

CLOSES = "{% for m in messages %}<{{ m.role }}>{{ m.content }}CLOSE\n{% endfor %}{% if add_generation_prompt %}<me>{% endif %}"
PHI = TEMPLATES["phi"]
ENDS = [
    # template, ids that the model's configuration names, what closes a turn, all ends
    ("none", None, None, "</s>", ["</s>"]),
    ("eos alone", CLOSES.replace("CLOSE", "</s>"), None, "</s>", ["</s>"]),
    ("gemma", CLOSES.replace("CLOSE", "<end_of_turn>"), {"generation_config": [2, 4]}, "<end_of_turn>", ["</s>", "<end_of_turn>"]),
    ("only the template says it", CLOSES.replace("CLOSE", "<end_of_turn>"), None, "<end_of_turn>", ["</s>", "<end_of_turn>"]),
    ("spaces before it", CLOSES.replace("CLOSE", " \n<end_of_turn>"), None, "<end_of_turn>", ["</s>", "<end_of_turn>"]),
    ("text alone", CLOSES.replace("CLOSE", "###"), None, "</s>", ["</s>"]),
    ("nothing", "{% for m in messages %}{{ m.content }}{% endfor %}", {"config": [2, 6]}, "</s>", ["</s>", "<|im_end|>"]),
    ("a turn mark is no end", "{% for m in messages %}{{ '<|im_start|>' if m.role == 'user' else '<|assistant|>' }}{{ m.content }}{% endfor %}{{ '<|assistant|>' }}", None, "</s>", ["</s>"]),
    ("two behind a last turn", PHI, {"generation_config": [9]}, "<|end|>", ["</s>", "<|end|>", "<|endoftext|>"]),
    ("only between turns", "{% for m in messages %}{{ m.content }}{{ '' if loop.last else '<|im_end|>' }}{% endfor %}", {"generation_config": 6}, "<|im_end|>", ["</s>", "<|im_end|>"]),
    ("generation before config", None, {"generation_config": [2, 4], "config": [5]}, "</s>", ["</s>", "<end_of_turn>"]),
    ("nonsense", None, {"generation_config": [True, "x", -1, 10**12, 4]}, "</s>", ["</s>", "<end_of_turn>"]),
    ("refuses", "{{ raise_exception('no') }}", {"config": 4}, "</s>", ["</s>", "<end_of_turn>"]),
    ("llama 2", "<<SYS>>[INST]<end_of_turn>", None, "</s>", ["</s>"]),
]  # fmt: skip


@pytest.mark.parametrize(("template", "ids", "closes", "ends"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
def test_an_answer_ends_where_model_or_template_say_and_a_turn_is_closed_as_the_template_does(
    tmp_path, template, ids, closes, ends
):
    changes = {name: {"eos_token_id": value} for name, value in (ids or {}).items()}
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
    assert named(loaded := Tokenizer.load(make_folder(tmp_path / "a", **several)), loaded.pad_id) == ["<unk>"]
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
