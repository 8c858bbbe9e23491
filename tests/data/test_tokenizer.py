"""Text to ids and back: seams, truncation, templates, special tokens, against the tokenizers' own words."""

import json
import re
import shutil

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from preferent.data.tokenizer import Tokenizer
from preferent.data.tokenizer.chat_templates import is_llama2, llama2
from preferent.data.types import Message, Prompt
from preferent.errors import DataError, PlatformError

CORPUS = [
    "I was looking at my son's test papers. He had made all A's on his tests. [summary]: When applying through a job",
    "portal, is just one person reading ALL my applications? The quick brown fox jumps over the lazy dog, 1234567890!",
    "Summarize in less than 50 words.\n\n\nQuestion: who was here?\n\nAnswer: nobody (at all) was here. [INST] <<SYS>>",
] * 4
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA3 += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = (
    "{% for message in messages %}\n    {%- set unused = 1 %}\n"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = "{{ '<<SYS>>' }}{{ '[INST]' }} whatever else it says"
FAMILIES = ("llama2", "gpt2", "llama3")


def bpe(pre_tokenizer, normalizer, special, vocabulary=()):
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        learner.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if not vocabulary else []
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=[*special, *vocabulary], initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(CORPUS, trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def llama2_backend():
    """As Llama 2's `tokenizer.json`: no pre-tokenizer, a space before the text, bytes for unknown characters."""
    special, named_bytes = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    prepared = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    split = pre_tokenizers.Split(tokenizers.Regex("▁*[^▁\n]+|▁+|\n"), "isolated")
    vocabulary, merges = bpe(split, prepared, special, named_bytes)
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = prepared
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.add_special_tokens(special)
    return backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def gpt2_backend():
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = tokenizers.Tokenizer(models.BPE(*bpe(split, None, ["<|endoftext|>"])))
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return backend, {f"{role}_token": "<|endoftext|>" for role in ("bos", "eos", "unk")}


def llama3_backend():
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|reserved_special_token_0|>"]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated"), whole])
    backend = tokenizers.Tokenizer(models.BPE(*bpe(split, None, special), ignore_merges=True))
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))]
    )
    return backend, {
        "bos_token": "<|begin_of_text|>",
        "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>", "special": True},
    }


BACKENDS = {"llama2": llama2_backend, "gpt2": gpt2_backend, "llama3": llama3_backend}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for family, make in BACKENDS.items():
        made[family] = tmp_path_factory.mktemp(family)
        backend, config = make()
        backend.save(str(made[family] / "tokenizer.json"))
        (made[family] / "tokenizer_config.json").write_text(json.dumps(config))
    return made


@pytest.fixture(scope="module")
def loaded(folders):
    return {family: Tokenizer.load(folder) for family, folder in folders.items()}


@pytest.fixture
def variant(folders, tmp_path):
    """A copy of a family's folder with files changed: an object is merged, None removes, a text is written as it is."""

    def make(family, **changes):
        folder = tmp_path / f"variant-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folders[family], folder)
        for name, change in changes.items():
            path = folder / (name + (".jinja" if name == "chat_template" else ".json"))
            if change is None:
                path.unlink()
            elif isinstance(change, str):
                path.write_text(change)
            else:
                path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | change))
        return folder

    return make


# Seams

PROMPTS = ["I was looking at my son's test papers. He had", "a job [summary]: ", "Question:\n\n", "x  ", "(", "é"]
ANSWERS = [" made all A's on his tests.", "  When", "who", "\n\nyes", "1234", "!", "", "漢字 é…", " ", "a\n"]
NATURAL = [("He had", " made all A's"), ("[summary]: ", " When applying"), ("Question:", " who?"), ("test ", "papers")]
NATURAL += [("He had made all", "\n\nAnswer: nobody"), ("one ", "person")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("text", "answer"), NATURAL)
def test_prompt_and_answer_together_are_the_ids_of_the_whole_text(loaded, family, text, answer):
    tokenizer, prompt = loaded[family], Prompt(text)
    ids = tokenizer.encode_prompt(prompt, None, 100)[0] + tokenizer.encode_answer(prompt, None, answer, 100)[0]
    assert ids == [*tokenizer.encode_text(text + answer), tokenizer.eos_id]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", [*PROMPTS, ""])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_comes_back_as_it_was(loaded, family, text, answer):
    tokenizer, prompt = loaded[family], Prompt(text)
    ids, cut = tokenizer.encode_answer(prompt, None, answer, 100)
    assert not cut
    assert ids[-1] == tokenizer.eos_id
    assert ids.count(tokenizer.eos_id) == 1
    assert tokenizer.decode_answer(prompt, None, ids) == answer
    if text:
        whole = tokenizer.encode_prompt(prompt, None, 100)[0] + ids
        assert tokenizer._raw(whole) == text + answer


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FAMILIES), st.text(max_size=12), st.text(max_size=12))
def test_any_answer_to_any_prompt_comes_back(loaded, family, text, answer):
    tokenizer, prompt = loaded[family], Prompt(text.replace("\0", ""))
    ids, _ = tokenizer.encode_answer(prompt, None, answer, 200)
    eos = tokenizer._token(tokenizer.eos_id)
    assert tokenizer.decode_answer(prompt, None, ids) == re.sub(f"({re.escape(eos)})*$", "", answer)
    assert all(0 <= id < tokenizer.vocab_size for id in ids)
    assert tokenizer.pad_id not in ids


def test_trailing_spaces_of_the_prompt_begin_the_answer(loaded):
    tokenizer = loaded["gpt2"]
    spaced, bare = Prompt("a job  "), Prompt("a job")
    assert tokenizer.encode_prompt(spaced, None, 99) == tokenizer.encode_prompt(bare, None, 99)
    assert tokenizer.encode_answer(spaced, None, "x", 99) == tokenizer.encode_answer(bare, None, "  x", 99)
    assert tokenizer.decode(tokenizer.encode_answer(spaced, None, "x", 99)[0]) == "  x"
    assert tokenizer.decode_answer(spaced, None, tokenizer.encode_answer(spaced, None, "x", 99)[0]) == "x"


def test_without_a_prompt_the_answer_is_a_text_from_its_beginning(loaded):
    tokenizer = loaded["llama2"]
    ids, _ = tokenizer.encode_answer(Prompt(), None, "He had", 99)
    assert [tokenizer.bos_id, *ids[:-1]] == tokenizer.encode_text("He had")
    assert tokenizer.encode_prompt(Prompt(), None, 99) == ([tokenizer.bos_id], False)
    assert tokenizer.decode_answer(Prompt(), None, ids) == "He had"


def test_batches_are_the_single_forms(loaded):
    prompts = [Prompt(text) for text in PROMPTS]
    for tokenizer in loaded.values():
        encoded, texts = tokenizer.encode_prompts(prompts, "Do.", 16), [tokenizer.text(p, "Do.") for p in prompts]
        assert [prompt.text for prompt in encoded] == texts
        assert [(p.ids, p.cut) for p in encoded] == [tokenizer.encode_prompt(p, "Do.", 16) for p in prompts]
        many = tokenizer.encode_answers(texts, ANSWERS[: len(prompts)], 3)
        alone = list(zip(prompts, ANSWERS, strict=False))
        assert many == [tokenizer.encode_answer(p, "Do.", answer, 3) for p, answer in alone]
        ids = [ids for ids, _ in many]
        decoded = [tokenizer.decode_answer(p, "Do.", row) for p, row in zip(prompts, ids, strict=True)]
        assert tokenizer.decode_answers(texts, ids) == decoded


# The end of an answer


@pytest.mark.parametrize("family", FAMILIES)
def test_eos_closes_what_is_complete_and_nothing_that_is_cut(loaded, family):
    tokenizer, prompt, answer = loaded[family], Prompt("Question:"), " who was here today?"
    whole, _ = tokenizer.encode_answer(prompt, None, answer, 100)
    length = len(whole)
    assert tokenizer.encode_answer(prompt, None, answer, length) == (whole, False)
    assert tokenizer.encode_answer(prompt, None, answer, length - 1) == (whole[:-1], True)
    assert tokenizer.encode_answer(prompt, None, answer, 2) == (whole[:2], True)


def test_special_tokens_that_an_answer_spells_are_text_but_for_eos_at_its_end(loaded):
    tokenizer, prompt = loaded["llama2"], Prompt("Q:")
    plain = tokenizer.encode_answer(prompt, None, " yes", 99)
    assert tokenizer.encode_answer(prompt, None, " yes</s></s>", 99) == plain
    for spelled in (" yes</s> no", "<unk>", "<s>[INST]"):
        ids, _ = tokenizer.encode_answer(prompt, None, spelled, 99)
        assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & set(ids[:-1])
        assert tokenizer.decode_answer(prompt, None, ids) == spelled
    assert tokenizer.encode_text("<s>a")[:2] == [tokenizer.bos_id, *tokenizer.encode_text("a")[1:2]]


# The text of a prompt


def test_the_instruction_is_joined_by_three_newlines_once(loaded):
    tokenizer = loaded["gpt2"]
    assert tokenizer.text(Prompt("Q [summary]: "), "Do it.") == "Do it.\n\n\nQ [summary]: "
    assert tokenizer.text(Prompt("Q"), None) == tokenizer.text(Prompt("Q"), "") == "Q"


CONVERSATION = (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "Bye"))
RENDERED = "<s>[INST] <<SYS>>\nCTX\n<</SYS>>\n\nHello [/INST] Hi</s><s>[INST] Bye [/INST]"


def test_llama_2_renders_as_gcpc_does(variant):
    assert llama2(CONVERSATION, "CTX") == RENDERED
    assert llama2(CONVERSATION, None) == RENDERED.replace("<<SYS>>\nCTX\n<</SYS>>\n\n", "")
    assert llama2(CONVERSATION[:2], None) == "<s>[INST] Hello [/INST] Hi</s><s>[INST]"
    assert is_llama2(LLAMA2)
    assert not is_llama2(CHATML)
    assert not is_llama2(None)
    tokenizer = Tokenizer.load(variant("llama2", chat_template=LLAMA2))
    assert tokenizer.text(Prompt(messages=CONVERSATION, context="CTX"), "IGNORED") == RENDERED
    assert tokenizer.text(Prompt(messages=CONVERSATION), "CTX") == RENDERED
    assert tokenizer.text(Prompt("plain"), "CTX") == "CTX\n\n\nplain"


def test_llama_2_conversations_have_one_bos_a_turn_and_one_space_before_the_answer(variant):
    tokenizer = Tokenizer.load(variant("llama2", chat_template=LLAMA2))
    prompt = Prompt(messages=CONVERSATION, context="CTX")
    ids, _ = tokenizer.encode_prompt(prompt, None, 400)
    assert (ids[0], ids.count(tokenizer.bos_id), ids.count(tokenizer.eos_id)) == (tokenizer.bos_id, 2, 1)
    first, second = (tokenizer.encode_answer(prompt, None, answer, 99)[0] for answer in ("Well", " Well"))
    assert first == second
    assert tokenizer.decode(first) == " Well"
    assert tokenizer.decode_answer(prompt, None, first) == "Well"
    text = Prompt(tokenizer.text(prompt, None))
    assert tokenizer.encode_prompt(text, None, 400) == (ids, False)
    assert tokenizer.encode_answer(text, None, "Well", 99)[0] == first


def test_another_template_is_rendered_as_transformers_does(variant):
    transformers = pytest.importorskip("transformers")
    folder = variant("llama3", chat_template=CHATML)
    tokenizer = Tokenizer.load(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    turns = [{"role": "system", "content": "CTX"}, *({"role": m.role, "content": m.content} for m in CONVERSATION)]
    prompt = Prompt(messages=CONVERSATION)
    rendered = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.text(prompt, "CTX") == rendered
    assert tokenizer.encode_prompt(prompt, "CTX", 400)[0] == theirs(rendered)["input_ids"]


def test_a_template_may_give_bos_itself_and_it_is_there_once(variant):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ strftime_now('%Y') }}"
    tokenizer = Tokenizer.load(variant("llama3", chat_template=template))
    ids, _ = tokenizer.encode_prompt(Prompt(messages=CONVERSATION), None, 400)
    assert ids.count(tokenizer.bos_id) == 1


def test_a_template_that_refuses_is_an_error_at_the_row_and_one_without_system_gets_it_in_the_first_message(variant):
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    shows = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
    tokenizer = Tokenizer.load(variant("llama3", chat_template=refuses + shows))
    prompt = Prompt(messages=CONVERSATION[:1], context="CTX", source="rows.jsonl:3")
    assert tokenizer.text(prompt, None) == "user=CTX\n\nHello;"
    for template in (
        "{{ raise_exception('never') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ):
        tokenizer = Tokenizer.load(variant("llama3", chat_template=template))
        with pytest.raises(DataError, match=r"rows.jsonl:3: the chat template refuses"):
            tokenizer.text(prompt, None)


def test_a_conversation_without_a_template_is_an_error_that_says_what_to_do(loaded):
    with pytest.raises(DataError, match=r"rows.jsonl:3: a conversation, but .* chat_template.jinja"):
        loaded["gpt2"].text(Prompt(messages=CONVERSATION, source="rows.jsonl:3"), None)


def test_of_several_templates_the_default_one_is_taken(variant):
    several = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    tokenizer = Tokenizer.load(variant("gpt2", tokenizer_config={"chat_template": several}))
    assert tokenizer.text(Prompt(messages=CONVERSATION), None) == "D"
    folder = variant("gpt2", tokenizer_config={"chat_template": several}, chat_template="J")
    assert Tokenizer.load(folder).text(Prompt(messages=CONVERSATION), None) == "J"


# Truncation


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_prompt_loses_its_beginning_and_keeps_instruction_and_tail(loaded, family):
    tokenizer, instruction = loaded[family], "Summarize in less than 50 words."
    prompt = Prompt("The quick brown fox jumps over the lazy dog. " * 20 + "He had made all [summary]: ")
    whole, cut = tokenizer.encode_prompt(prompt, instruction, 10_000)
    assert not cut
    head = tokenizer.encode_text(instruction + "\n\n\n")
    for limit in (len(head) + 1, len(head) + 9, len(whole) - 1):
        ids, cut = tokenizer.encode_prompt(prompt, instruction, limit)
        assert (len(ids), cut) == (limit, True)
        assert ids[: len(head)] == head
        assert ids[len(head) :] == whole[len(head) - limit :]
    assert tokenizer.encode_prompt(prompt, instruction, len(whole)) == (whole, False)
    with pytest.raises(DataError, match="leave no room"):
        tokenizer.encode_prompt(prompt, instruction, len(head))


@pytest.mark.parametrize("family", FAMILIES)
def test_truncation_cuts_no_character_in_two(loaded, family):
    tokenizer, prompt = loaded[family], Prompt("漢字" * 30)
    for limit in range(4, 20):
        ids, _ = tokenizer.encode_prompt(prompt, None, limit)
        assert limit - 3 <= len(ids) <= limit
        assert re.fullmatch("字?(漢字)*", tokenizer._raw(ids))


def test_a_long_conversation_loses_its_oldest_turns_then_the_front_of_its_last_message(variant):
    tokenizer = Tokenizer.load(variant("llama2", chat_template=LLAMA2))
    turns = []
    for number in range(6):
        turns += [Message("user", f"question {number} today"), Message("assistant", f"answer {number}")]
    prompt = Prompt(messages=(*turns, Message("user", "The quick brown fox jumps over the lazy dog")))
    whole = len(tokenizer.encode_prompt(prompt, "CTX", 10_000)[0])
    seen = set()
    for limit in range(30, whole):
        ids, cut = tokenizer.encode_prompt(prompt, "CTX", limit)
        text = tokenizer._backend.decode(ids, skip_special_tokens=False)
        assert cut
        assert len(ids) <= limit
        assert text.startswith("<s> [INST] <<SYS>>\nCTX\n<</SYS>>\n\n")
        assert text.endswith("lazy dog [/INST]")
        kept = [int(number) for number in re.findall(r"question (\d)", text)]
        assert kept == list(range(6))[6 - len(kept) :]
        assert not kept or "The quick brown" in text
        seen.add(len(kept))
    assert seen == {0, 1, 2, 3, 4, 5}
    with pytest.raises(DataError, match="leave no room"):
        tokenizer.encode_prompt(prompt, "CTX", 5)


# Special tokens and files


def test_ids_are_as_the_files_say(loaded):
    assert (loaded["llama2"].bos_id, loaded["llama2"].eos_id, loaded["llama2"].pad_id) == (1, 2, 0)
    gpt2 = loaded["gpt2"]
    assert gpt2.bos_id == gpt2.eos_id != gpt2.pad_id
    assert gpt2._backend.id_to_token(gpt2.pad_id) == "À"
    llama3 = loaded["llama3"]
    assert llama3._backend.id_to_token(llama3.pad_id) == "<|reserved_special_token_0|>"
    assert llama3.encode_text("a")[0] == llama3.bos_id
    assert gpt2.encode_text("a")[0] != gpt2.bos_id


def test_pad_is_the_tokenizers_own_if_it_is_not_eos(variant):
    own = {"pad_token": "<|im_end|>"}
    tokenizer = Tokenizer.load(variant("llama3", tokenizer_config=own))
    assert tokenizer._backend.id_to_token(tokenizer.pad_id) == "<|im_end|>"
    tokenizer = Tokenizer.load(variant("llama2", tokenizer_config={"pad_token": "</s>"}))
    assert tokenizer.pad_id == 0
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    with pytest.raises(PlatformError, match='set "pad_token"'):
        Tokenizer.load(
            variant("gpt2", tokenizer=backend.to_str(), tokenizer_config={"eos_token": "</s>", "unk_token": "</s>"})
        )


def test_special_tokens_are_found_wherever_they_are_named(variant):
    none = {"tokenizer_config": "{}"}
    assert Tokenizer.load(variant("llama2", **none, special_tokens_map={"eos_token": {"content": "</s>"}})).eos_id == 2
    assert Tokenizer.load(variant("llama2", **none, config={"eos_token_id": [2, 7], "bos_token_id": 1})).eos_id == 2
    assert Tokenizer.load(variant("llama2", **none, generation_config={"eos_token_id": 2})).bos_id is None
    with pytest.raises(PlatformError, match='set "eos_token"'):
        Tokenizer.load(variant("llama2", **none))


def test_bos_is_added_as_the_configuration_says(variant):
    tokenizer = Tokenizer.load(variant("llama2", tokenizer_config={"add_bos_token": False}))
    assert tokenizer.encode_text("He")[0] != tokenizer.bos_id
    tokenizer = Tokenizer.load(variant("gpt2", tokenizer_config={"add_bos_token": True}))
    assert tokenizer.encode_text("He")[0] == tokenizer.bos_id


def test_padding_and_truncation_in_the_file_are_not_ours(variant, loaded):
    folder = variant("gpt2")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.save(str(folder / "tokenizer.json"))
    text = "The quick brown fox"
    assert Tokenizer.load(folder).encode_text(text) == loaded["gpt2"].encode_text(text)


def test_missing_and_broken_files_say_what_to_do(variant, tmp_path):
    with pytest.raises(PlatformError, match="no such folder"):
        Tokenizer.load(tmp_path / "none")
    folder = variant("llama2", tokenizer=None)
    with pytest.raises(PlatformError, match=r"holds no tokenizer.json"):
        Tokenizer.load(folder)
    (folder / "tokenizer.model").write_bytes(b"")
    with pytest.raises(PlatformError, match=r"python -c .*save_pretrained"):
        Tokenizer.load(folder)
    with pytest.raises(PlatformError, match=r"tokenizer_config.json: cannot be read as JSON"):
        Tokenizer.load(variant("llama2", tokenizer_config="{"))
    with pytest.raises(PlatformError, match="is not a tokenizer"):
        Tokenizer.load(variant("llama2", tokenizer="{}"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_the_same_tokenizer_here_and_in_transformers(variant, tmp_path, family):
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.load(variant(family, chat_template=CHATML, special_tokens_map={"pad_token": "</s>"}))
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in CORPUS[:3]:
        assert theirs(text)["input_ids"] == tokenizer.encode_text(text)
    assert (theirs.eos_token_id, theirs.chat_template) == (tokenizer.eos_id, CHATML)
    if family != "gpt2":
        assert theirs.pad_token_id == tokenizer.pad_id


def test_the_fingerprint_sees_template_special_tokens_and_vocabulary(variant, loaded):
    same = Tokenizer.load(variant("llama3")).fingerprint
    assert same == loaded["llama3"].fingerprint
    changed = [variant("llama3", chat_template=CHATML), variant("llama3", tokenizer_config={"eos_token": "<|im_end|>"})]
    changed.append(variant("llama3", tokenizer_config={"add_bos_token": False}))
    assert len({same, *(Tokenizer.load(folder).fingerprint for folder in changed)}) == 4


def test_an_old_sentencepiece_tokenizer_is_converted_by_the_line_we_name_and_then_says_what_it_said(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    transformers = pytest.importorskip("transformers")
    model = tmp_path / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(model), vocab_size=420, model_type="bpe", byte_fallback=True,
        minloglevel=2, normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
    )  # fmt: skip
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True, "legacy": True}))
    with pytest.raises(PlatformError, match="AutoTokenizer"):
        Tokenizer.load(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    tokenizer, original = Tokenizer.load(tmp_path), sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    for text, answer in NATURAL:
        prompt = Prompt(text)
        ids = tokenizer.encode_prompt(prompt, None, 99)[0] + tokenizer.encode_answer(prompt, None, answer, 99)[0]
        assert ids == [1, *original.encode(text + answer), 2]
