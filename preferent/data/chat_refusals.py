"""Conversations that the chat template of a model refuses: unusable rows, left out before anything is trained."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from preferent.config import model_reference
from preferent.data.formats.row_reader import Dropped, RecordsRead
from preferent.data.tokenizer import Tokenizer
from preferent.data.tokenizer.chat_templates import ChatOptions
from preferent.data.types import Demonstration, Preference, Prompt, Record, Thumb
from preferent.errors import DataError, PlatformError

R = TypeVar("R", Preference, Prompt, Demonstration, Preference | Thumb, Record)


def tokenizers(references: Mapping[str, ChatOptions], offline: bool) -> list[Tokenizer]:
    """Return the tokenizers of models with their chat options; no weight is downloaded, nothing at all if `offline`.

    A model whose tokenizer is out of reach is named on stderr: its template is met when its stage begins.
    """
    loaded = []
    for reference, chat in references.items():
        try:
            folder = model_reference.tokenizer_folder(reference, offline)
            loaded += [] if folder is None else [Tokenizer.load(folder, chat)]
        except PlatformError as error:
            print(f"{reference}: conversations are not tried with its chat template yet: {error}", file=sys.stderr)
    return loaded


def without(
    reading: RecordsRead[R], load: Callable[[], Sequence[Tokenizer]], instruction: str | None
) -> RecordsRead[R]:
    """Return what was read without the conversations that one of the tokenizers refuses, which count as dropped rows.

    The tokenizers are loaded only if there are conversations.
    """
    if not any(_prompt(record).messages for record in reading.records):
        return reading
    loaded = load()
    reasons = [refusal(record, loaded, instruction) for record in reading.records]
    kept = [record for record, reason in zip(reading.records, reasons, strict=True) if not reason]
    sources = [record.source for record in reading.records]
    refused: list[Dropped] = [
        _dropped(source, reason) for source, reason in zip(sources, reasons, strict=True) if reason
    ]
    return RecordsRead(kept, [*reading.dropped, *refused], reading.read, reading.format)


def refusal(record: Record, loaded: Sequence[Tokenizer], instruction: str | None) -> str:
    """Return why a tokenizer refuses the conversation in a record, or an empty text."""
    prompt = replace(_prompt(record), source=record.source)
    try:
        for tokenizer in loaded if prompt.messages else ():
            tokenizer.text(prompt, instruction)
    except DataError as error:
        return str(error).removeprefix(f"{record.source}: ")
    return ""


def _prompt(record: Record) -> Prompt:
    return record if isinstance(record, Prompt) else record.prompt


def _dropped(source: str, reason: str) -> Dropped:
    file, _, line = source.rpartition(":")
    return Dropped(file, int(line), f"refused conversation: {reason}")
