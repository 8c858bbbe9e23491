"""Chat templates for other programs: ours as a Go template for Ollama, and as Jinja for RewardBench.

A chat template is not translated but observed. Conversations of known words are rendered with it, and the texts between
the words are taken. The template made of these texts must render other conversations as the original does.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from preferent.config.recipe import Recipe
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import SEPARATOR, Message, Prompt
from preferent.errors import UsageError

Render = Callable[[Sequence[Message], str | None], str]

PLAIN_GO = (
    "{{ if .System }}{{ .System }}" + SEPARATOR + "{{ end }}"
    "{{ range $i, $_ := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}{{ .Content }}{{ end }}{{ end }}"
)
"""The template of a prompt that is a text: instruction and input. It uses only the last message of a conversation."""

PLAIN_JINJA = (
    "{{% for message in messages %}}{{% if message['role'] == 'user' %}}{{{{ {instruction} + message['content'] }}}}"
    "{{% elif message['role'] == 'assistant' %}}{{{{ message['content'] + eos_token }}}}{{% endif %}}{{% endfor %}}"
)
LLAMA2_JINJA = (
    "{{% set ns = namespace(context={context}) %}}"
    "{{% if messages[0]['role'] == 'system' %}}{{% set ns.context = messages[0]['content'] %}}{{% endif %}}"
    "{{{{ '[INST] ' }}}}{{% if ns.context %}}"
    "{{{{ '<<SYS>>\\n' + ns.context + '\\n<</SYS>>\\n\\n' }}}}{{% endif %}}"
    "{{% for message in messages %}}{{% if message['role'] == 'user' %}}{{{{ message['content'] + ' [/INST]' }}}}"
    "{{% elif message['role'] == 'assistant' %}}{{{{ ' ' + message['content'] + eos_token }}}}"
    "{{% if not loop.last %}}{{{{ bos_token + '[INST] ' }}}}{{% endif %}}{{% endif %}}{{% endfor %}}"
)


@dataclass(frozen=True, slots=True)
class TemplateTurns:
    """The texts around the turns of a conversation.

    `head` begins a conversation without a system text; `before_system` and `after_system` enclose a system text.
    `reply` is between a user's message and the place where the model answers, `seam` between that place and the text of
    an earlier answer, `close` between that answer and the user's next message.
    """

    head: str
    before_system: str
    after_system: str
    reply: str
    seam: str
    close: str

    def text(self, messages: Sequence[Message], context: str | None) -> str:
        """Return the text of a conversation that ends with the user, up to the place where the model answers."""
        text = self.before_system + context + self.after_system if context else self.head
        for message in messages:
            user = message.role == "user"
            text += message.content + self.reply if user else self.seam + message.content + self.close
        return text

    def go(self, bos: str) -> str:
        """Return the Go template over Ollama's `.System` and `.Messages`, without the `bos` at its beginning."""
        system = f"{_go(self.before_system.removeprefix(bos))}{{{{ .System }}}}{_go(self.after_system)}"
        return (
            f"{{{{ if .System }}}}{system}{{{{ else }}}}{_go(self.head.removeprefix(bos))}{{{{ end }}}}"
            f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{_go(self.reply)}'
            f'{{{{ else if eq .Role "assistant" }}}}{_go(self.seam)}{{{{ .Content }}}}{_go(self.close)}'
            "{{ end }}{{ end }}"
        )


def _go(text: str) -> str:
    """Return a fixed text, escaped for a Go template."""
    return text.replace("{{", '{{ "{{" }}')


def observe(render: Render) -> TemplateTurns | None:
    """Return the turns of a template, or None if the template does more than put texts around messages."""
    first, answer, second, system = "Qfirst", "Qanswer", "Qsecond", "Qsystem"
    messages = [Message("user", first), Message("assistant", answer), Message("user", second)]
    without = _between(render(messages, None), first, answer, second)
    with_system = _between(render(messages, system), system, first, answer, second)
    if without is None or with_system is None or not without[1].startswith(without[3]):
        return None
    head, answered, close, reply = without
    turns = TemplateTurns(head, with_system[0], with_system[1], reply, answered.removeprefix(reply), close)
    words = ["Hello there.", "Well:\nyes, I see", "And {that}?", "No", "Why 7?"]
    long = [Message("assistant" if i % 2 else "user", word) for i, word in enumerate(words)]
    chats = itertools.product((long[:1], long[:3], long), (None, "Be brief.\nBe kind."))
    return turns if all(turns.text(*chat) == render(*chat) for chat in chats) else None


def _between(text: str, *words: str) -> list[str] | None:
    """Return the texts before, between and after words; None unless the text contains each once, in this order."""
    parts = []
    for word in words:
        before, separator, text = text.partition(word)
        if not separator or word in text:
            return None
        parts.append(before)
    return [*parts, text]


def go_template(tokenizer: Tokenizer, bos: str, converses: bool) -> str | None:
    """Return the Go template that renders prompts as the tokenizer does, or None if there is none.

    `bos` is the text of the token that the program itself puts in front; it is empty if the program puts none.
    """
    if not converses:
        return PLAIN_GO
    turns = observe(lambda messages, context: tokenizer.text(Prompt(messages=tuple(messages), context=context), None))
    return None if turns is None else turns.go(bos)


def score_template(llama2: bool, instruction: str | None) -> str:
    """Return a Jinja template of a conversation with its last answer, closed by EOS, as our reward models read it.

    The template contains the instruction, but no BOS at the beginning: the tokenizer adds it.
    """
    if llama2:
        return LLAMA2_JINJA.format(context=json.dumps(instruction or "", ensure_ascii=False))
    prefix = instruction + SEPARATOR if instruction else ""
    return PLAIN_JINJA.format(instruction=json.dumps(prefix, ensure_ascii=False))


def modelfile(template: str | None, ends: Iterable[str], recipe: Recipe) -> str:
    """Return Ollama's Modelfile, with the template, the instruction, the sampling settings of the run, and the tokens
    that end an answer."""
    greedy, settings = recipe.infer.sampling_strategy == "greedy", recipe.sampler
    lines = ["FROM ./model.gguf"]
    lines += [] if template is None else [f"TEMPLATE {_quoted(template)}"]
    lines += [f"SYSTEM {_quoted(recipe.instruction)}"] if recipe.instruction else []
    parameters = {
        "temperature": 0 if greedy else settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "repeat_penalty": 1.0,
        "num_ctx": recipe.prompt_sequence_length + recipe.target_sequence_length,
        "num_predict": recipe.target_sequence_length,
    }
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in ends]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text:
        raise UsageError('a Modelfile cannot contain """; remove it from the instruction or the chat template')
    return f'"""{text}"""'
