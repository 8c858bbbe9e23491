"""Text and conversations to token ids and back: instruction, templates, truncation, the seam to the answer, pad.

A prompt's ids and an answer's ids are made apart and put together. The prompt's trailing spaces go to the answer, since
tokens begin with their space; an answer is encoded behind an anchor, a text that is taken off again, since a tokenizer
treats the beginning of a text otherwise than its middle.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
import tokenizers

from preferent.data.tokenizer import chat_templates
from preferent.data.tokenizer import tokenizer_files as files
from preferent.data.types import Message, Prompt, digest
from preferent.errors import DataError, PlatformError

SEPARATOR = "\n\n\n"
"""Between instruction and input (GCPC)."""
_ANCHORS = ("\n", "a", ":", "0", ".")
_LETTERS = ("a", "A", "0", ".", ":")
_NEVER_IN_UTF8 = "ÀÁõö÷øùúûüýþÿ"
"""The names that byte-level BPE gives to the bytes C0, C1 and F5 to FF, which no valid UTF-8 text holds."""

Ids = tuple[list[int], bool]
"""Token ids and whether something was cut off."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as a model reads it: its text with instruction and template, its token ids, and whether they were cut
    (the text never is)."""

    text: str
    ids: list[int]
    cut: bool


class Tokenizer:
    """A tokenizer in the Hugging Face layout; `Tokenizer.load(folder)` makes one."""

    def __init__(self, found: files.TokenizerFiles) -> None:
        self._files = found
        self._backend = tokenizers.Tokenizer.from_str(found.backend)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._template = found.template
        self.is_llama2 = chat_templates.is_llama2(found.template)
        self.bos_id = self._special("bos")
        eos = self._special("eos")
        if eos is None:
            raise PlatformError(
                f"{found.folder}: the tokenizer names no end-of-sequence token, so no answer could end; "
                'set "eos_token" in its tokenizer_config.json to the token that ends a text'
            )
        self.eos_id: int = eos
        self.vocab_size: int = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.pad_id: int = self._pad()
        self._adds_bos = self._begins_with_bos()
        self._anchors = [(anchor, self._plain([anchor])[0]) for anchor in _ANCHORS]
        self._letter = next(((x, ids) for x in _LETTERS if self._raw(ids := self._plain([x])[0]) == x), ("", []))

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer in a folder: `tokenizer.json`, `tokenizer_config.json`, and perhaps a chat template."""
        return cls(files.read(folder))

    def save(self, folder: Path) -> None:
        """Write the same files, with the pad token set; a byte that serves as pad is not named, for it is no text."""
        roles = {"bos": self.bos_id, "eos": self.eos_id, "unk": self._special("unk"), "pad": self.pad_id}
        names = {role: self._token(id) for role, id in roles.items()}
        unnamed = ("", *_NEVER_IN_UTF8)
        files.write(self._files, {role: name for role, name in names.items() if name not in unnamed}, folder)

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides which ids a text gets."""
        special = json.dumps([self.bos_id, self.eos_id, self.pad_id, self._adds_bos])
        return digest(self._files.backend, special, self._template or "")

    # Special tokens

    def _special(self, role: str) -> int | None:
        """The id of a special token: by its name in the tokenizer's configuration, else by the model's."""
        name = self._files.names.get(role)
        named = self._backend.token_to_id(name) if name is not None else None
        return named if named is not None else self._files.ids.get(role)

    def _pad(self) -> int:
        """The pad token if it is not EOS, else `<unk>`, else a reserved one, else a byte that no text holds."""
        unk = self._special("unk")
        for id in (self._special("pad"), self._backend.token_to_id("<unk>") if unk is None else unk):
            if id is not None and id not in (self.eos_id, self.bos_id):
                return id
        added = self._backend.get_added_tokens_decoder()
        special = {token.content: id for id, token in sorted(added.items()) if token.special}
        for word in ("pad", "reserved", "unused"):
            for name, id in special.items():
                if word in name.lower() and id not in (self.eos_id, self.bos_id):
                    return id
        if '"ByteLevel"' in self._files.backend:
            for name in _NEVER_IN_UTF8:
                byte = self._backend.token_to_id(name)
                if byte is not None:
                    return byte
        raise PlatformError(
            f"{self._files.folder}: the tokenizer has no token to pad with (pad, <unk> or a reserved one, not EOS); "
            'set "pad_token" in its tokenizer_config.json to a token that answers never use'
        )

    def _begins_with_bos(self) -> bool:
        """Whether texts begin with BOS: as the configuration says, else as the tokenizer itself does."""
        if self.bos_id is None:
            return False
        said = self._files.config.get("add_bos_token")
        return said if isinstance(said, bool) else self._backend.encode("a").ids[:1] == [self.bos_id]

    def _token(self, id: int | None) -> str:
        return "" if id is None else self._backend.id_to_token(id) or ""

    # Text

    def text(self, prompt: Prompt, instruction: str | None) -> str:
        """What is asked, as one text (GCPC: `inputs_pretokenized`): instruction joined, template applied, each once.

        In a conversation the instruction is the system text, unless the conversation has a context of its own.
        """
        if not prompt.messages:
            return f"{instruction}{SEPARATOR}{prompt.input_text}" if instruction else prompt.input_text
        context = instruction if prompt.context is None else prompt.context
        bos, eos = self._token(self.bos_id), self._token(self.eos_id)
        if self.is_llama2:
            return chat_templates.llama2(prompt.messages, context, bos, eos)
        if self._template is None:
            raise DataError(
                f"{prompt.source + ': ' if prompt.source else ''}a conversation, but the tokenizer in "
                f"{self._files.folder} has no chat template; put a chat_template.jinja there, take a chat model, "
                "or give the prompts as input_text"
            )
        try:
            return chat_templates.jinja(self._template, prompt.messages, context, bos, eos)
        except jinja2.TemplateError as error:
            place = prompt.source or f"prompt {prompt.key}"
            raise DataError(f"{place}: the chat template refuses the conversation: {error}") from None

    @property
    def converses(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    def inert(self, text: str) -> str:
        """A text in which no special token is spelled: a zero-width space stands behind the first letter of each."""
        special = [token.content for token in self._backend.get_added_tokens_decoder().values() if token.special]
        for name in filter(None, special):
            text = text.replace(name, f"{name[0]}\u200b{name[1:]}")
        return text

    def _seam(self, text: str) -> tuple[str, str]:
        """A prompt's text without its trailing spaces, and those; after Llama 2's `[/INST]` one, after nothing none."""
        stripped = text.rstrip(" ")
        chat = self.is_llama2 and stripped.endswith("[/INST]")
        return stripped, " " if chat else text[len(stripped) :] if stripped else ""

    def _continuation(self, text: str, answer: str) -> str:
        """An answer with the spaces that its prompt gave it; Llama 2's chat gives one to an answer that has none."""
        while answer.endswith(eos := self._token(self.eos_id)):
            answer = answer.removesuffix(eos)
        stripped, spaces = self._seam(text)
        if self.is_llama2 and stripped.endswith("[/INST]") and (not answer or answer[0].isspace()):
            return answer
        return spaces + answer

    # Text to ids

    def _plain(self, texts: Sequence[str], literal: bool = False) -> list[list[int]]:
        """Ids of texts, without BOS; `literal`: a special token that a text spells is ordinary text."""
        self._backend.encode_special_tokens = literal
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        self._backend.encode_special_tokens = False
        return [each.ids for each in encoded]

    def _with_bos(self, ids: list[int]) -> list[int]:
        if self._adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of a plain text, with BOS where the tokenizer adds one, without EOS."""
        return self._with_bos(self._plain([text])[0])

    def encode_prompt(self, prompt: Prompt, instruction: str | None, max_tokens: int) -> Ids:
        """Ids of a prompt, at most `max_tokens`, and whether it was cut: from the front of the input, nowhere else."""
        (encoded,) = self.encode_prompts([prompt], instruction, max_tokens)
        return encoded.ids, encoded.cut

    def encode_prompts(
        self, prompts: Sequence[Prompt], instruction: str | None, max_tokens: int
    ) -> list[EncodedPrompt]:
        """Render each prompt once and encode it as `encode_prompt` does; answers go by the text."""
        texts = [self.text(prompt, instruction) for prompt in prompts]
        whole = [self._with_bos(ids) for ids in self._plain([self._seam(text)[0] for text in texts])]
        return [
            EncodedPrompt(text, ids, False)
            if len(ids) <= max_tokens
            else EncodedPrompt(text, self._shortened(prompt, text, instruction, max_tokens), True)
            for prompt, text, ids in zip(prompts, texts, whole, strict=True)
        ]

    def _shortened(self, prompt: Prompt, text: str, instruction: str | None, max_tokens: int) -> list[int]:
        """Ids of a prompt whose `text` is longer than `max_tokens`."""
        if prompt.messages:
            ids = self._without_turns(prompt, text, instruction, max_tokens)
        else:
            ids = self._without_beginning(text, instruction, max_tokens)
        if not ids:
            raise DataError(
                f"{prompt.source + ': ' if prompt.source else ''}instruction and template leave no room in "
                f"prompt_sequence_length = {max_tokens} tokens; raise it, or shorten the instruction"
            )
        return ids

    def _without_beginning(self, text: str, instruction: str | None, max_tokens: int) -> list[int]:
        """The instruction and as much of the end of the input as there is room for; empty if for nothing."""
        head = self._with_bos(self._plain([instruction + SEPARATOR if instruction else ""])[0])
        tail = self._tail(self._seam(text)[0], max_tokens - len(head))
        return head + tail if tail else []

    def _tail(self, text: str, room: int) -> list[int]:
        """The last `room` ids of a text, or a few less where a character would be cut in two."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        start = len(encoding.ids) - max(room, 0)
        while 0 < start < len(encoding.ids) and encoding.offsets[start][0] < encoding.offsets[start - 1][1]:
            start += 1
        return encoding.ids[start:]

    def _without_turns(self, prompt: Prompt, text: str, instruction: str | None, max_tokens: int) -> list[int]:
        """A conversation without its oldest turns, then without the front of its last message; empty if that is all."""
        turns = prompt.messages
        while True:
            ids = self.encode_text(self._seam(text)[0])
            if len(ids) <= max_tokens:
                return ids
            later = next((place for place, turn in enumerate(turns) if place and turn.role == "user"), 0)
            content = "" if later else self._without_front(turns[0].content, len(ids) - max_tokens)
            if not later and not content:
                return []
            turns = turns[later:] if later else (Message("user", content),)
            text = self.text(replace(prompt, messages=turns), instruction)

    def _without_front(self, text: str, count: int) -> str:
        """A text without its first `count` tokens, at least one character."""
        offsets = self._backend.encode(text, add_special_tokens=False).offsets
        return text[max(offsets[count][0], 1) :] if count < len(offsets) else ""

    def encode_answer(self, prompt: Prompt, instruction: str | None, answer: str, max_tokens: int) -> Ids:
        """Ids of an answer to a prompt, and whether it was cut: EOS closes a complete answer, a cut one has none."""
        return self.encode_answers([self.text(prompt, instruction)], [answer], max_tokens)[0]

    def encode_answers(self, texts: Sequence[str], answers: Sequence[str], max_tokens: int) -> list[Ids]:
        """`encode_answer` of many, to prompts that are rendered already (`EncodedPrompt.text`).

        Special tokens that an answer spells are text, but for EOS at its end.
        """
        parts = [self._continuation(text, answer) for text, answer in zip(texts, answers, strict=True)]
        encoded = self._behind_anchors(parts, [bool(self._seam(text)[0]) for text in texts])
        return [self._closed(ids, max_tokens) for ids in encoded]

    def _behind_anchors(self, parts: Sequence[str], anchored: Sequence[bool]) -> list[list[int]]:
        """Ids of texts as they are in the middle of a text: behind the first anchor whose own ids stay as they were."""
        result = self._plain(parts, literal=True)
        waiting = [place for place, part in enumerate(parts) if part and anchored[place]]
        for anchor, before in self._anchors:
            encoded = self._plain([anchor + parts[place] for place in waiting], literal=True)
            stuck = []
            for place, ids in zip(waiting, encoded, strict=True):
                if ids[: len(before)] == before:
                    result[place] = ids[len(before) :]
                else:
                    stuck.append(place)
            waiting = stuck
        return result

    def _closed(self, ids: list[int], max_tokens: int) -> Ids:
        return ([*ids, self.eos_id], False) if len(ids) < max_tokens else (ids[:max_tokens], True)

    # Ids to text

    def _raw(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def _spoken(self, ids: Sequence[int]) -> list[int]:
        return [int(id) for id in ids if int(id) not in (self.eos_id, self.pad_id, self.bos_id)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids, with the space it begins with, without special tokens."""
        letter, before = self._letter
        text = self._raw([*before, *self._spoken(ids)])
        return text.removeprefix(letter) if text.startswith(letter) else self._raw(self._spoken(ids))

    def decode_answer(self, prompt: Prompt, instruction: str | None, ids: Sequence[int]) -> str:
        """The text of an answer's ids without the spaces that its prompt gave it: what `encode_answer` was given."""
        return self.decode_answers([self.text(prompt, instruction)], [ids])[0]

    def decode_answers(self, texts: Sequence[str], answers: Sequence[Sequence[int]]) -> list[str]:
        """`decode_answer` of many, to prompts that are rendered already (`EncodedPrompt.text`)."""
        seams = [self._seam(text) for text in texts]
        return [
            self.decode(ids).removeprefix(spaces) if stripped else self._raw(self._spoken(ids))
            for (stripped, spaces), ids in zip(seams, answers, strict=True)
        ]
