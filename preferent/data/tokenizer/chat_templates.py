"""Conversations as text: Llama 2's own template as GCPC writes it, any other by the tokenizer's Jinja template."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from preferent.data.types import Message

TODAY = {"%d %b %Y": "26 Jul 2024", "%Y-%m-%d": "2024-07-26", "%B %d, %Y": "July 26, 2024"}
"""What templates that ask for the date are told: always the same day, or a run could not be resumed tomorrow."""


def is_llama2(template: str | None) -> bool:
    """Whether a chat template is the one of Llama 2."""
    return template is not None and "<<SYS>>" in template and "[INST]" in template


def llama2(messages: Sequence[Message], context: str | None, bos: str = "<s>", eos: str = "</s>") -> str:
    """A conversation as GCPC's `preprocess_chat_dataset` writes it for llama-2-7b-chat and llama-2-13b-chat."""
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
    """A conversation by a tokenizer's chat template, with the mark after which the model answers.

    A template that refuses a system message gets the context at the head of the first user's message.
    Raises `jinja2.TemplateError` where the template refuses the conversation.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    given: dict[str, Any] = {"add_generation_prompt": True, "bos_token": bos, "eos_token": eos}
    if not context:
        return _compiled(template).render(messages=turns, **given)
    try:
        return _compiled(template).render(messages=[{"role": "system", "content": context}, *turns], **given)
    except jinja2.TemplateError:
        first = {"role": "user", "content": f"{context}\n\n{turns[0]['content']}"}
        return _compiled(template).render(messages=[first, *turns[1:]], **given)
