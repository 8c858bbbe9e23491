"""Conversations as text: by Llama 2's template as in GCPC, or by the tokenizer's own Jinja template."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from preferent.data.types import Message

TODAY = {"%d %b %Y": "26 Jul 2024", "%Y-%m-%d": "2024-07-26", "%B %d, %Y": "July 26, 2024"}
"""The date for templates that print it, by format. It never changes, so that a run can be resumed on another day."""


def is_llama2(template: str | None) -> bool:
    """Return whether a chat template is that of Llama 2."""
    return template is not None and "<<SYS>>" in template and "[INST]" in template


def llama2(messages: Sequence[Message], context: str | None, bos: str = "<s>", eos: str = "</s>") -> str:
    """Render a conversation as GCPC's `preprocess_chat_dataset` does for llama-2-7b-chat and llama-2-13b-chat."""
    text = f"{bos}[INST] " + (f"<<SYS>>\n{context}\n<</SYS>>\n\n" if context else "")
    for message in messages:
        user = message.role == "user"
        text += f"{message.content} [/INST]" if user else f" {message.content}{eos}{bos}[INST] "
    return text.rstrip()


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _date(format: str) -> str:
    return TODAY.get(format, "26 July 2024")


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _date}
    environment.filters["tojson"] = _json
    return environment.from_string(template)


def jinja(template: str, messages: Sequence[Message], context: str | None, bos: str, eos: str) -> str:
    """Render a conversation with a tokenizer's chat template, up to the mark after which the model answers.

    If the template refuses a system message, the context is put before the user's first message.
    Raise `jinja2.TemplateError` if the template refuses the conversation.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    variables: dict[str, Any] = {"add_generation_prompt": True, "bos_token": bos, "eos_token": eos}
    if not context:
        return _compiled(template).render(messages=turns, **variables)
    try:
        return _compiled(template).render(messages=[{"role": "system", "content": context}, *turns], **variables)
    except jinja2.TemplateError:
        first = {"role": "user", "content": f"{context}\n\n{turns[0]['content']}"}
        return _compiled(template).render(messages=[first, *turns[1:]], **variables)
