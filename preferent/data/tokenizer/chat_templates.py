"""Conversations as text: by Llama 2's template as in GCPC, or by a Jinja template as transformers renders it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2

from preferent.config.recipe import Recipe
from preferent.data.tokenizer import template_environment
from preferent.data.types import Message
from preferent.errors import PlatformError

ADVICE = "copy the template again from the model, or name another with chat_template: FILE in the recipe"
FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
"""What the expressions of a template may raise besides `jinja2.TemplateError`."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, where it is written, and the variables that it reads besides the conversation."""

    text: str
    place: str
    variables: Mapping[str, Any] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], context: str | None = None, answers: bool = True) -> str:
        """Return a conversation, if `answers` up to the mark after which the model answers.

        If the template refuses a system message, the context is put before the user's first message.
        Raise `jinja2.TemplateError` if the template refuses the conversation.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        if not context:
            return self._text(turns, answers)
        try:
            return self._text([{"role": "system", "content": context}, *turns], answers)
        except jinja2.TemplateError:
            first = {"role": "user", "content": f"{context}\n\n{turns[0]['content']}"}
            return self._text([first, *turns[1:]], answers)

    def _text(self, turns: list[dict[str, str]], answers: bool) -> str:
        asked = {"tools": None, "documents": None, **self.variables}
        try:
            return template_environment.render(
                self.compiled, {**asked, "messages": turns, "add_generation_prompt": answers}
            )
        except template_environment.TooMuchWorkError:
            raise PlatformError(
                f"{self.place}: the chat template takes more work for a conversation of {len(turns)} turns than any "
                f"needs, and may never end; {ADVICE}"
            ) from None
        except FAULTS as error:
            raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from None

    def behind_answer(self) -> tuple[str, str]:
        """Return what the template puts behind an answer at the end of a conversation, and before a further turn.

        Both are empty if it refuses the conversation.
        """
        turns = [Message("user", "Qfirst"), Message("assistant", "Qanswer"), Message("user", "Qsecond")]
        try:
            last, between = (self.render(turns[:count], answers=False) for count in (2, 3))
        except (jinja2.TemplateError, PlatformError):
            return "", ""
        return last.rpartition("Qanswer")[2], between.rpartition("Qanswer")[2].partition("Qsecond")[0]

    @cached_property
    def compiled(self) -> jinja2.Template:
        """Return the compiled template. Raise `PlatformError` if it is not a template."""
        try:
            return _compiled(self.text)
        except (jinja2.TemplateError, SyntaxError, RecursionError, ValueError) as error:
            line = f":{error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise PlatformError(f"{self.place}{line}: is not a chat template: {error}; {ADVICE}") from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    return template_environment.TemplateEnvironment().from_string(template)


@dataclass(frozen=True)
class ChatOptions:
    """What a recipe says on conversations: a template instead of the model's own, and variables for it."""

    template: str | None = None
    place: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> "ChatOptions":
        """Read the recipe's template and variables."""
        return cls.read(recipe.chat_template, recipe.chat_template_kwargs or {})

    @classmethod
    def read(cls, path: str | None, variables: Mapping[str, Any]) -> "ChatOptions":
        """Read a template. Raise `PlatformError` if its file cannot be read or is not a template."""
        if path is None:
            return cls(variables=variables)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlatformError(
                f"chat_template: {path}: cannot be read: {error}; name a file with a Jinja template"
            ) from None
        _ = ChatTemplate(text, path).compiled
        return cls(text, path, variables)


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
