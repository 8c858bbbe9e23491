"""From texts and conversations to token ids and back: instruction, templates, truncation, the seam to the answer, pad.

Prompts and answers are encoded separately and concatenated. The prompt's trailing spaces go to the answer, since tokens
begin with their space. An answer is encoded behind an anchor, a text whose ids are then removed, since a tokenizer
treats the beginning of a text differently from its middle.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import tokenizers

from preferent.data.tokenizer import chat_templates
from preferent.data.tokenizer import tokenizer_files as files
from preferent.data.tokenizer.chat_templates import ChatOptions, ChatTemplate
from preferent.data.types import SEPARATOR, EncodedPrompt, Message, Prompt, digest
from preferent.errors import DataError, PlatformError

_ANCHORS = ("\n", "a", ":", "0", ".")
_LETTERS = ("a", "A", "0", ".", ":")
_NEVER_IN_UTF8 = "ÀÁõö÷øùúûüýþÿ"
"""The names in byte-level BPE of the bytes C0, C1 and F5 to FF, which no valid UTF-8 text holds."""

OWN = ChatOptions()
"""The template that the model brings along, as it is."""

Ids = tuple[list[int], bool]
"""Token ids and whether something was cut off."""


class Tokenizer:
    """A tokenizer in the Hugging Face layout; `Tokenizer.load(folder)` makes one.

    An answer ends at any of `end_ids`. A complete answer is closed by EOS, in a conversation by `turn_end_id`, the end
    that the chat template puts behind an assistant's turn.
    """

    def __init__(self, source: files.TokenizerFiles, variables: Mapping[str, Any]) -> None:
        self._files = source
        self._backend = tokenizers.Tokenizer.from_str(source.backend)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._variables = variables
        self.is_llama2 = chat_templates.is_llama2(source.template)
        self.vocab_size: int = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id = self._special("bos")
        eos = self._special("eos")
        if eos is None:
            raise PlatformError(
                f"{source.folder}: the tokenizer names no end-of-sequence token, so no answer could end; "
                'set "eos_token" in its tokenizer_config.json to the token that ends a text'
            )
        self.eos_id: int = eos
        self._template = self._chat_template()
        self.end_ids = self._named_ends()
        self.turn_end_id: int = self._turn_end()
        self.end_ids |= {self.turn_end_id}
        self.pad_id: int = self._pad()
        self.end_ids -= {self.pad_id}
        self.turn_end_id = self.eos_id if self.turn_end_id == self.pad_id else self.turn_end_id
        self._adds_bos = self._begins_with_bos()
        self._anchors = [(anchor, self._plain([anchor])[0]) for anchor in _ANCHORS]
        self._letter = next(
            ((text, ids) for text in _LETTERS if self._raw(ids := self._plain([text])[0]) == text), ("", [])
        )

    @classmethod
    def load(cls, folder: Path, chat: ChatOptions = OWN) -> "Tokenizer":
        """Load the tokenizer in a folder: `tokenizer.json`, `tokenizer_config.json`, and a chat template if any.

        A template in `chat` takes the place of the folder's.
        """
        source = files.read(folder, tools=chat.variables.get("tools") is not None)
        if chat.template is not None:
            source = replace(source, template=chat.template, template_place=chat.place)
        try:
            return cls(source, chat.variables)
        except (PlatformError, DataError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # what a damaged file makes of the library: also a panic, which is no Exception
            said = " ".join(str(error).split())[:200]
            raise PlatformError(f"{folder}/tokenizer.json: cannot be read: {said}; copy it again") from error

    def save(self, folder: Path, new_pad: bool = False) -> None:
        """Write the same files with the pad token set.

        A byte that serves as pad is not named, since texts would lose its character. Then the files keep the pad token
        of their source, or with `new_pad` get a new one.
        """
        roles = {"bos": self.bos_id, "eos": self.eos_id, "unk": self._special("unk"), "pad": self.pad_id}
        named = {role: name for role, id in roles.items() if (name := self._token(id))}
        if "bos" not in self._files.names and "bos_token" in self._files.named_tokens:
            named.pop("bos", None)  # the configuration says that there is none, and templates must go on to see none
        pad = None
        if named["pad"] in _NEVER_IN_UTF8:
            del named["pad"]
            if new_pad:
                pad, named["pad"] = self.named_pad(new_pad), files.PAD
        ends = [self.eos_id, *sorted(self.end_ids - {self.eos_id})]
        files.write(self._files, named, ends, folder, pad)

    def named_pad(self, new_pad: bool) -> int | None:
        """Return the id of the pad token that saved files name; None if they name none."""
        if self._token(self.pad_id) not in _NEVER_IN_UTF8:
            return self.pad_id
        return files.id_of_pad(self._files.backend) if new_pad else self._special("pad")

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything that determines the ids of a text."""
        special: list[Any] = [self.bos_id, self.eos_id, self.pad_id, self._adds_bos]
        special += [self.turn_end_id, *sorted(self.end_ids)] if self.end_ids != {self.eos_id} else []
        special += [dict(self._variables)] if self._variables else []
        return digest(self._files.backend, json.dumps(special, sort_keys=True), self._files.template or "")

    # Special tokens

    def _special(self, role: str) -> int | None:
        """Return the id of a special token by the tokenizer's configuration, or by the model's."""
        name = self._files.names.get(role)
        named = self._backend.token_to_id(name) if name is not None else None
        if named is not None:
            return named
        id = self._files.ids.get(role)
        return id if id is not None and 0 <= id < self.vocab_size else None

    def _named_ends(self) -> frozenset[int]:
        """Return the ids at which tokenizer or model configuration end an answer, as far as the vocabulary has them."""
        named = (id for id in self._files.ends if 0 <= id < self.vocab_size and self._token(id))
        return frozenset({self.eos_id, *named})

    def _turn_end(self) -> int:
        """Return the first end that the template puts behind an assistant's turn, or EOS where it puts none.

        It is one of `end_ids`, or a special token that stands behind the turn whatever follows.
        """
        if self._template is None or self.is_llama2:
            return self.eos_id
        last, between = self._plain(self._template.behind_answer())
        always = next((i for i, (a, b) in enumerate(zip(last, between, strict=False)) if a != b), len(last))
        special = {id for id, token in self._backend.get_added_tokens_decoder().items() if token.special}
        behind = (id for i, id in enumerate(last) if id in self.end_ids or (i < always and id in special))
        return next(behind, next((id for id in between if id in self.end_ids), self.eos_id))

    def _pad(self) -> int:
        """Return the pad token: the configured one, else `<unk>`, else a reserved token, else an unused byte.

        It is not a token that ends an answer, unless there is no other and the configuration names it.
        """
        unk, own, taken = self._special("unk"), self._special("pad"), {*self.end_ids, self.bos_id}
        for id in (own, self._backend.token_to_id("<unk>") if unk is None else unk):
            if id is not None and id not in taken:
                return id
        added = self._backend.get_added_tokens_decoder()
        special = {token.content: id for id, token in sorted(added.items()) if token.special}
        for word in ("pad", "reserved", "unused"):
            for name, id in special.items():
                if word in name.lower() and id not in taken:
                    return id
        if '"ByteLevel"' in self._files.backend:
            for name in _NEVER_IN_UTF8:
                byte = self._backend.token_to_id(name)
                if byte is not None:
                    return byte
        if own is not None and own not in (self.eos_id, self.bos_id):
            return own
        raise PlatformError(
            f"{self._files.folder}: the tokenizer has no token to pad with (pad, <unk> or a reserved one, not EOS); "
            'set "pad_token" in its tokenizer_config.json to a token that answers never use'
        )

    def _begins_with_bos(self) -> bool:
        """Return whether texts begin with BOS, by the configuration or by the tokenizer's own behaviour."""
        if self.bos_id is None:
            return False
        setting = self._files.config.get("add_bos_token")
        return setting if isinstance(setting, bool) else self._backend.encode("a").ids[:1] == [self.bos_id]

    def _token(self, id: int | None) -> str:
        return "" if id is None else self._backend.id_to_token(id) or ""

    def _chat_template(self) -> ChatTemplate | None:
        """Return the chat template with the variables that transformers gives it: special tokens and the recipe's."""
        if self._files.template is None:
            return None
        unnamed = {f"{role}_token": self._token(self._special(role)) for role in ("bos", "eos", "unk")}
        named = {name: text for name, text in (unnamed | self._files.named_tokens).items() if text}
        return ChatTemplate(self._files.template, self._files.template_place, {**named, **self._variables})

    @cached_property
    def end_texts(self) -> dict[str, int]:
        """Return the tokens that end an answer and are never a part of its text, EOS and added ones, with their ids."""
        added = self._backend.get_added_tokens_decoder()
        ends = [self.eos_id, *sorted(id for id in self.end_ids if id in added)]
        return {text: id for id in ends if (text := self._token(id))}

    # Text

    def text(self, prompt: Prompt, instruction: str | None) -> str:
        """Return a prompt as one text (GCPC: `inputs_pretokenized`), with instruction and template applied once.

        In a conversation the instruction is the system text, unless the conversation has its own context.
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
                f"{self._files.folder} has no chat template; name a file with one in the recipe (chat_template: FILE), "
                "put a chat_template.jinja there, use a chat model, or give the prompts as input_text"
            )
        try:
            return self._template.render(prompt.messages, context)
        except jinja2.TemplateError as error:
            place = prompt.source or f"prompt {prompt.key}"
            raise DataError(f"{place}: the chat template refuses the conversation: {error}") from None

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def inert(self, text: str) -> str:
        """Return a text without special tokens: a zero-width space is inserted after the first letter of each."""
        special = [token.content for token in self._backend.get_added_tokens_decoder().values() if token.special]
        for name in filter(None, special):
            text = text.replace(name, f"{name[0]}\u200b{name[1:]}")
        return text

    def _seam(self, text: str) -> tuple[str, str]:
        """Split a prompt's text and its trailing spaces: one after Llama 2's `[/INST]`, none after an empty text."""
        stripped = text.rstrip(" ")
        chat = self.is_llama2 and stripped.endswith("[/INST]")
        return stripped, " " if chat else text[len(stripped) :] if stripped else ""

    def _continuation(self, text: str, answer: str) -> str:
        """Return an answer with the spaces from its prompt; after Llama 2's `[/INST]`, only if it has none itself."""
        while (end := next((text for text in self.end_texts if answer.endswith(text)), None)) is not None:
            answer = answer.removesuffix(end)
        stripped, spaces = self._seam(text)
        if self.is_llama2 and stripped.endswith("[/INST]") and (not answer or answer[0].isspace()):
            return answer
        return spaces + answer

    # Text to ids

    def _plain(self, texts: Sequence[str], literal: bool = False) -> list[list[int]]:
        """Return the ids of texts, without BOS; if `literal`, special tokens in a text are ordinary text."""
        self._backend.encode_special_tokens = literal
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        self._backend.encode_special_tokens = False
        return [encoding.ids for encoding in encoded]

    def _with_bos(self, ids: list[int]) -> list[int]:
        if self._adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a plain text, with BOS if the tokenizer adds one, without EOS."""
        return self._with_bos(self._plain([text])[0])

    def encode_prompt(self, prompt: Prompt, instruction: str | None, max_tokens: int) -> Ids:
        """Return at most `max_tokens` ids of a prompt, and whether it was cut; only the front of the input is cut."""
        (encoded,) = self.encode_prompts([prompt], instruction, max_tokens)
        return encoded.ids, encoded.cut

    def encode_prompts(
        self, prompts: Sequence[Prompt], instruction: str | None, max_tokens: int
    ) -> list[EncodedPrompt]:
        """Render each prompt once and encode it as `encode_prompt` does; answers are encoded after the text."""
        texts = [self.text(prompt, instruction) for prompt in prompts]
        whole = [self._with_bos(ids) for ids in self._plain([self._seam(text)[0] for text in texts])]
        return [
            EncodedPrompt(text, ids, False, self._end(prompt))
            if len(ids) <= max_tokens
            else EncodedPrompt(text, self._shortened(prompt, text, instruction, max_tokens), True, self._end(prompt))
            for prompt, text, ids in zip(prompts, texts, whole, strict=True)
        ]

    def _end(self, prompt: Prompt) -> int:
        """Return the id that closes a complete answer to a prompt."""
        return self.turn_end_id if prompt.messages else self.eos_id

    def _shortened(self, prompt: Prompt, text: str, instruction: str | None, max_tokens: int) -> list[int]:
        """Return the ids of a prompt whose `text` is longer than `max_tokens`."""
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
        """Return the ids of the instruction and of the longest end of the input that fits; empty if none fits."""
        head = self._with_bos(self._plain([instruction + SEPARATOR if instruction else ""])[0])
        tail = self._tail(self._seam(text)[0], max_tokens - len(head))
        return head + tail if tail else []

    def _tail(self, text: str, room: int) -> list[int]:
        """Return the last `room` ids of a text, or a few fewer if a character would be split."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        start = len(encoding.ids) - max(room, 0)
        while 0 < start < len(encoding.ids) and encoding.offsets[start][0] < encoding.offsets[start - 1][1]:
            start += 1
        return encoding.ids[start:]

    def _without_turns(self, prompt: Prompt, text: str, instruction: str | None, max_tokens: int) -> list[int]:
        """Drop the oldest turns of a conversation, then the front of its last message; return empty ids if none fit."""
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
        """Return a text without its first `count` tokens; at least one character is removed."""
        offsets = self._backend.encode(text, add_special_tokens=False).offsets
        return text[max(offsets[count][0], 1) :] if count < len(offsets) else ""

    def encode_answer(self, prompt: Prompt, instruction: str | None, answer: str, max_tokens: int) -> Ids:
        """Return the ids of an answer, and whether it was cut: only a complete answer has the end that closes it."""
        ends = [self._end(prompt)]
        return self.encode_answers([self.text(prompt, instruction)], [answer], max_tokens, ends)[0]

    def encode_answers(
        self, texts: Sequence[str], answers: Sequence[str], max_tokens: int, ends: Sequence[int] | None = None
    ) -> list[Ids]:
        """Encode answers to rendered prompts (`EncodedPrompt.text`), each as `encode_answer` does.

        `ends` (`EncodedPrompt.end`) close complete answers; the default is EOS, as for prompts that are plain text.
        Special tokens in an answer are ordinary text, except those that end it.
        """
        closing = [self.eos_id] * len(answers) if ends is None else ends
        parts = [self._continuation(text, answer) for text, answer in zip(texts, answers, strict=True)]
        encoded = self._behind_anchors(parts, [bool(self._seam(text)[0]) for text in texts])
        return [
            ([*ids, end], False) if len(ids) < max_tokens else (ids[:max_tokens], True)
            for ids, end in zip(encoded, closing, strict=True)
        ]

    def _behind_anchors(self, parts: Sequence[str], anchored: Sequence[bool]) -> list[list[int]]:
        """Return the ids of texts in the middle of a text: behind the first anchor whose own ids do not change."""
        ids_of_parts = self._plain(parts, literal=True)
        waiting = [place for place, part in enumerate(parts) if part and anchored[place]]
        for anchor, before in self._anchors:
            encoded = self._plain([anchor + parts[place] for place in waiting], literal=True)
            stuck = []
            for place, ids in zip(waiting, encoded, strict=True):
                if ids[: len(before)] == before:
                    ids_of_parts[place] = ids[len(before) :]
                else:
                    stuck.append(place)
            waiting = stuck
        return ids_of_parts

    # Ids to text

    def _raw(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def _without_special(self, ids: Sequence[int]) -> list[int]:
        special = {self.pad_id, self.bos_id, self.eos_id, *self.end_texts.values()}
        return [int(id) for id in ids if int(id) not in special]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids, with its leading space, without special tokens."""
        letter, before = self._letter
        text = self._raw([*before, *self._without_special(ids)])
        return text.removeprefix(letter) if text.startswith(letter) else self._raw(self._without_special(ids))

    def decode_answer(self, prompt: Prompt, instruction: str | None, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids without the spaces from its prompt: the inverse of `encode_answer`."""
        return self.decode_answers([self.text(prompt, instruction)], [ids])[0]

    def decode_answers(self, texts: Sequence[str], answers: Sequence[Sequence[int]]) -> list[str]:
        """Decode answers to rendered prompts (`EncodedPrompt.text`), each as `decode_answer` does."""
        seams = [self._seam(text) for text in texts]
        return [
            self.decode(ids).removeprefix(spaces) if stripped else self._raw(self._without_special(ids))
            for (stripped, spaces), ids in zip(seams, answers, strict=True)
        ]
