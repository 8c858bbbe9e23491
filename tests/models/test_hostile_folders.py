"""Broken and hostile model folders: each is refused with exit code 3 and one sentence, whichever library would fail."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import quiet_recipe
from peft import AutoPeftModelForCausalLM, IA3Config, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from preferent import files
from preferent.config import model_folder, model_reference
from preferent.data.tokenizer import Tokenizer
from preferent.errors import PlatformError, PreferentError, UsageError
from preferent.models import language_models, saving
from preferent.models.world import World
from preferent.runs import interruption

NESTED = '{"a":' * 5000 + "1" + "}" * 5000
ROWS = 358
"""Rows of the embeddings of the small model, and tokens of its tokenizer."""

Harm = Callable[[Path], object]


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(quiet_recipe())


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the small model, to be broken."""
    return Path(shutil.copytree(tiny, tmp_path / "model", ignore=shutil.ignore_patterns(".*")))


@pytest.fixture(scope="module")
def made_adapter(tiny: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = language_models.load_policy(tiny, world, lora_dim=2)
    folder = tmp_path_factory.mktemp("adapters") / "run/policy/model"
    saving.save(policy, folder, policy.trainable(), "# test\n")
    return folder


@pytest.fixture
def adapter(made_adapter: Path, tmp_path: Path) -> Path:
    """A copy of a LoRA adapter on the small model, to be broken."""
    return Path(shutil.copytree(made_adapter, tmp_path / "adapter"))


def refused(load: Callable[[], object]) -> str:
    """The sentence with which something is refused, with exit code 3."""
    with pytest.raises(PlatformError) as caught:
        load()
    said = str(caught.value)
    assert caught.value.exit_code == 3 and "\n" not in said and len(said) < 700, said
    assert said.isprintable()
    return said


# How to break a file


def now(name: str, **changes: Any) -> Harm:
    """Give keys of a JSON file other values (Ellipsis: none)."""

    def harm(folder: Path) -> None:
        values = files.read_json(folder / name) | changes
        files.write_json(folder / name, {key: value for key, value in values.items() if value is not ...})

    return harm


def config(**changes: Any) -> Harm:
    return now("config.json", **changes)


def written(name: str, content: str | bytes) -> Harm:
    return lambda folder: files.write_atomic(folder / name, content)


def a_folder(name: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return harm


def cut(name: str, share: float) -> Harm:
    def harm(folder: Path) -> None:
        content = (folder / name).read_bytes()
        files.write_atomic(folder / name, content[: int(len(content) * share)])

    return harm


def index(weight_map: object) -> Harm:
    """Put an index in place of the weights."""

    def harm(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        files.write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})

    return harm


def tensors(change: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> Harm:
    def harm(folder: Path) -> None:
        held = load_file(folder / name)
        change(held)
        save_file(held, folder / name, {"format": "pt"})

    return harm


def pickled(folder: Path, *, beside: bool = False) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")


def endless(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


MODELS: dict[str, Harm] = {
    **{f"config: {n} {value!r:.12}": config(**{n: value}) for n, value in [
        ("vocab_size", -5), ("vocab_size", "many"), ("vocab_size", 10**12), ("vocab_size", 2**70), ("vocab_size", True),
        ("vocab_size", 10), ("max_position_embeddings", "many"), ("max_position_embeddings", -1),
        ("num_hidden_layers", 10**9), ("num_hidden_layers", "two"), ("num_hidden_layers", 0), ("num_hidden_layers", 3),
        ("num_attention_heads", 0), ("num_attention_heads", 3), ("num_attention_heads", 10**9),
        ("num_key_value_heads", 3), ("num_key_value_heads", [1]), ("hidden_size", 10**9), ("hidden_size", 33),
        ("hidden_size", 2.5), ("intermediate_size", 10**9), ("intermediate_size", 2**62), ("intermediate_size", [64]),
        ("head_dim", "wide"), ("rope_parameters", "x"), ("rope_parameters", {"rope_type": "nonsense"}),
        ("rms_norm_eps", "small"), ("hidden_act", "nonsense"), ("dtype", "nonsense"), ("architectures", 5),
        ("architectures", [["x"]]), ("model_type", ...), ("model_type", "nonsense"), ("model_type", 7),
        ("pad_token_id", 10**6), ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}), ("quantization_config", "x"),
        ("layer_types", ["mamba", "full_attention"]), ("layer_types", ["nonsense"]), ("layer_types", 3),
        ("num_labels", "x"), ("id2label", "x"),
    ]},
    "config: nested 5,000 deep": written("config.json", NESTED),
    "config: nested inside": written("config.json", '{"model_type": "llama", "text_config": ' + NESTED + "}"),
    "config: empty": written("config.json", b""),
    "config: a list": written("config.json", b"[]"),
    "config: not UTF-8": written("config.json", b'{"model_type": "\xff"}'),
    "config: a number without end": written("config.json", b'{"vocab_size": ' + b"9" * 9999 + b"}"),
    "config: a folder": a_folder("config.json"),
    "config: without end": endless,
    "no EOS there": lambda folder: [
        now("tokenizer_config.json", eos_token=...)(folder),
        config(eos_token_id=10**6)(folder),
        now("generation_config.json", eos_token_id=-1)(folder),
    ],
    **{f"weights: cut at {share}": cut("model.safetensors", share) for share in (0.001, 0.01, 0.5, 0.999)},
    "weights: empty": written("model.safetensors", b""),
    "weights: a folder": a_folder("model.safetensors"),
    "weights: a pickle": written("model.safetensors", b"\x80\x04\x95(cos\nsystem\n"),
    "weights: only a pickle, and a file that is read by nobody": pickled,
    "weights: of another shape": tensors(lambda held: held.update({"model.norm.weight": torch.ones(33)})),
    "weights: one missing": tensors(lambda held: held.pop("model.norm.weight")),
    "weights: not finite": tensors(lambda held: held["model.norm.weight"].fill_(torch.nan)),
    "index: outside of the folder": index({"model.norm.weight": "/etc/passwd"}),
    "index: above the folder": index({"model.norm.weight": "../../x.safetensors"}),
    "index: a file that is not there": index({"model.norm.weight": "model-00001-of-00002.safetensors"}),
    "index: an empty name": index({"model.norm.weight": ""}),
    "index: a number": index({"model.norm.weight": 1}),
    "index: a list": index([1]),
    "index: nothing": index({}),
    "index: too little": index({"model.norm.weight": "part.safetensors", "x": "tokenizer.json"}),
    "tokenizer: cut": cut("tokenizer.json", 0.5),
    "tokenizer: empty": written("tokenizer.json", b""),
    "tokenizer: nested": written("tokenizer.json", NESTED),
    "tokenizer: a folder": a_folder("tokenizer.json"),
    "tokenizer: no model": written("tokenizer.json", b"{}"),
    "tokenizer: an empty model": written("tokenizer.json", b'{"model": {}}'),
    "tokenizer: no vocabulary": written("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'),
    "tokenizer: another vocabulary": now("tokenizer.json", model={"type": "BPE", "vocab": {"a": "b"}, "merges": [1]}),
    "tokenizer: added tokens": now("tokenizer.json", added_tokens=[1]),
    "tokenizer: a decoder": now("tokenizer.json", decoder={"type": "nonsense"}),
    "tokenizer: huge ids": now("tokenizer.json", added_tokens=[
        {"id": 2**31, "content": "<x>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
    ]),
    "tokenizer_config: empty": written("tokenizer_config.json", b""),
    "tokenizer_config: nested": written("tokenizer_config.json", NESTED),
    "generation_config: broken": written("generation_config.json", b"{"),
    "generation_config: nested": written("generation_config.json", NESTED),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_broken_model_is_refused_in_one_sentence(model: Path, world: World, name: str) -> None:
    MODELS[name](model)
    assert str(model) in refused(lambda: language_models.load_policy(model, world))


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("config", "index", "weights: cut"))])
def test_the_start_of_a_reward_model_is_refused_as_well(model: Path, world: World, name: str) -> None:
    MODELS[name](model)
    refused(lambda: language_models.load_scorer(model, world, 0, seed=1))


def weights_of(change: Callable[[dict[str, torch.Tensor]], object]) -> Harm:
    return tensors(change, model_folder.ADAPTER_WEIGHTS)


def lora(**changes: Any) -> Harm:
    return now("adapter_config.json", **changes)


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / model_folder.ADAPTER_WEIGHTS), folder / "adapter_model.bin")
    (folder / model_folder.ADAPTER_WEIGHTS).unlink()


def renamed(held: dict[str, torch.Tensor]) -> None:
    held["base_model.model.nothing.lora_A.weight"] = held[next(iter(held))].clone()


def resized(held: dict[str, torch.Tensor]) -> None:
    held["base_model.model.model.embed_tokens.weight"] = torch.ones(ROWS + 2, 32)


ADAPTERS: dict[str, tuple[Harm, str]] = {
    "only a pickle": (as_pickle, "a pickled adapter is not read, since it can run code. Convert it once"),
    "on itself": (lora(base_model_name_or_path="."), "is an adapter itself"),
    "on nothing": (lora(base_model_name_or_path=None), "does not name the adapter's base"),
    "on a number": (lora(base_model_name_or_path=5), "does not name the adapter's base"),
    "on a long name": (lora(base_model_name_or_path="x/" * 3000), ""),
    "on what is not there": (lora(base_model_name_or_path="../nowhere"), "no such folder"),
    "on a byte of zero": (lora(base_model_name_or_path="a\0b"), "does not name"),
    "of a revision": (lora(base_model_name_or_path="../nowhere", revision=[5]), ""),
    "of an unknown kind": (lora(peft_type="NONSENSE"), "cannot be loaded"),
    "of no kind": (lora(peft_type=...), "cannot be loaded"),
    "of a list": (lora(peft_type=["LORA"]), "cannot be loaded"),
    "before the prompt": (lora(peft_type="PREFIX_TUNING"), "PREFIX_TUNING, which is not read here"),
    "for an unknown task": (lora(task_type="NONSENSE"), "task_type: 'NONSENSE'"),
    "for another task": (lora(task_type="SEQ_2_SEQ_LM"), "task_type: 'SEQ_2_SEQ_LM'"),
    "of modules that are not there": (lora(target_modules=["nonsense"]), "cannot be loaded"),
    "of no modules": (lora(target_modules=None), "fit nothing in"),
    "of fewer modules": (lora(target_modules=["q_proj"]), "fit nothing in"),
    "of more modules": (lora(target_modules="all-linear", modules_to_save=["lm_head"]), ""),
    "of another rank": (lora(r=3), "cannot be loaded"),
    "of no rank": (lora(r=0), "cannot be loaded"),
    "of a wrong rank": (lora(r="two"), "cannot be loaded"),
    "of a foreign module": (lora(megatron_config={"a": 1}, megatron_core="antigravity"), "name code to import"),
    "of a foreign core": (lora(megatron_core="antigravity"), "name code to import"),
    "nested 5,000 deep": (written("adapter_config.json", NESTED), "cannot be read as JSON"),
    "empty": (written("adapter_config.json", b""), "cannot be read as JSON"),
    "a list": (written("adapter_config.json", b"[]"), "is not a JSON object"),
    "a folder": (a_folder("adapter_config.json"), "is not a file"),
    "cut weights": (cut(model_folder.ADAPTER_WEIGHTS, 0.5), "cannot be read"),
    "empty weights": (written(model_folder.ADAPTER_WEIGHTS, b""), "cannot be read"),
    "weights as a folder": (a_folder(model_folder.ADAPTER_WEIGHTS), "cannot be read"),
    "one weight missing": (weights_of(lambda held: held.pop(next(iter(held)))), "missing adapter keys"),
    "no weights": (weights_of(dict.clear), "missing adapter keys"),
    "one weight too many": (weights_of(renamed), "fit nothing in"),
    "other rows": (weights_of(resized), "resize_token_embeddings"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_broken_adapter_is_refused_in_one_sentence(adapter: Path, world: World, name: str) -> None:
    harm, expected = ADAPTERS[name]
    harm(adapter)
    assert expected in refused(lambda: language_models.load_policy(adapter, world))


def test_a_ring_of_adapters_is_refused(adapter: Path, world: World) -> None:
    other = Path(shutil.copytree(adapter, adapter.with_name("other")))
    lora(base_model_name_or_path="../other")(adapter)
    lora(base_model_name_or_path="../adapter")(other)
    assert "is an adapter itself" in refused(lambda: language_models.load_policy(adapter, world))
    assert "is an adapter itself" in refused(lambda: model_reference.parameters(str(adapter)))


def test_an_adapter_with_embeddings_of_another_size_names_both(adapter: Path, world: World) -> None:
    ADAPTERS["other rows"][0](adapter)
    said = refused(lambda: language_models.load_policy(adapter, world))
    assert f"its model.embed_tokens.weight is [{ROWS + 2}, 32]" in said and f"is [{ROWS}, 32]" in said


@pytest.mark.parametrize("pattern", ["(.*)*(.*)*(.*)*(.*)*(.*)*(.*)*nothing", "((a|.)*)*(([a-z._0-9])*)*!"])
def test_a_pattern_without_end_is_stopped(
    adapter: Path, world: World, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "LONGEST_OPENING", 0.5)
    lora(target_modules=pattern)(adapter)
    assert "takes over" in refused(lambda: language_models.load_policy(adapter, world))


def test_the_base_of_an_adapter_that_is_fetched_is_told(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora(base_model_name_or_path="owner/name", revision="v1")(adapter)
    monkeypatch.setattr(model_reference, "_download", lambda *words: tiny)
    assert model_reference.adapter_base(adapter) == tiny
    assert f"{adapter}: its base model owner/name@v1 is fetched from the hub" in capsys.readouterr().err
    monkeypatch.setattr(model_reference, "cached", lambda name: tiny)
    model_reference.adapter_base(adapter)
    assert capsys.readouterr().err == ""


def test_an_adapter_is_not_trained_further(adapter: Path, world: World) -> None:
    for load in (
        lambda: language_models.load_policy(adapter, world, lora_dim=2),
        lambda: language_models.load_scorer(adapter, world, 0, seed=1),
    ):
        with pytest.raises(UsageError, match="is an adapter, but training wants a full model; merge it"):
            load()


def test_an_adapter_of_another_kind_that_changes_weights_is_read(tiny: Path, world: World, tmp_path: Path) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), IA3Config(task_type="CAUSAL_LM")).save_pretrained(
        tmp_path
    )
    assert language_models.load_policy(tmp_path, world).peft is not None


def test_an_adapter_that_is_a_prompt_is_refused(tiny: Path, world: World, tmp_path: Path) -> None:
    """It would be left out: hidden states are those of the bare base."""
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), prompt).save_pretrained(tmp_path)
    assert "PROMPT_TUNING" in refused(lambda: language_models.load_policy(tmp_path, world))


def test_the_way_out_of_a_pickled_adapter_works(adapter: Path, world: World) -> None:
    before = load_file(adapter / model_folder.ADAPTER_WEIGHTS)
    as_pickle(adapter)
    refused(lambda: language_models.load_policy(adapter, world))
    AutoPeftModelForCausalLM.from_pretrained(adapter).save_pretrained(adapter)
    language_models.load_policy(adapter, world)
    after = load_file(adapter / model_folder.ADAPTER_WEIGHTS)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# Vocabulary


def with_added(folder: Path, *names: str) -> Tokenizer:
    """Add tokens behind the vocabulary of a model, whose embeddings stay as they are."""
    values = json.loads((folder / "tokenizer.json").read_text())
    values["added_tokens"] += [
        {"id": ROWS + number, "content": name, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, name in enumerate(names)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return Tokenizer.load(folder)


def test_a_tokenizer_larger_than_the_embeddings_is_refused_with_both_sizes(model: Path, world: World) -> None:
    with_added(model, "<|turn|>", "<|end|>")
    for load in (
        lambda: language_models.load_policy(model, world),
        lambda: language_models.load_scorer(model, world, 0, seed=1),
        lambda: model_reference.check(quiet_recipe(large_model_reference=str(model), prompt_dataset="x")),
    ):
        said = refused(load)
        assert f"its tokenizer has {ROWS + 2} tokens, but its embeddings have {ROWS} rows" in said
        assert f"model.resize_token_embeddings({ROWS + 2})" in said


def test_the_way_out_of_a_larger_tokenizer_works(model: Path, world: World) -> None:
    with_added(model, "<|turn|>", "<|end|>")
    plain = AutoModelForCausalLM.from_pretrained(model)
    plain.resize_token_embeddings(ROWS + 2)
    plain.save_pretrained(model)
    assert language_models.load_policy(model, world).vocab_size == ROWS + 2


def test_a_token_for_images_beyond_the_embeddings_is_plain_text(tiny: Path, model: Path, world: World) -> None:
    """Gemma 3 1B has one token more than rows, for the images that its larger sisters see."""
    tokenizer = with_added(model, "<image_soft_token>")
    text = "the <image_soft_token> dog"
    assert tokenizer.vocab_size == ROWS
    assert tokenizer.encode_text(text) == Tokenizer.load(tiny).encode_text(text)
    assert language_models.load_policy(model, world).tokenizer.vocab_size == ROWS


# Recurrent models

RECURRENT = {
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2, "context_length": 64},
    "jamba": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
        "mamba_d_state": 4, "mamba_dt_rank": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("by", ["config.json", "the cache"])
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_model_is_refused_before_its_weights_are_read(
    tiny: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, by: str
) -> None:
    made = AutoConfig.for_model(
        kind, vocab_size=ROWS, bos_token_id=1, eos_token_id=2, pad_token_id=0, **RECURRENT[kind]
    )
    AutoModelForCausalLM.from_config(made).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path)
    if by == "the cache":
        monkeypatch.setattr(model_folder, "_check_kind", lambda folder, config: None)
    loads: list[Callable[[], object]] = [lambda: language_models.load_policy(tmp_path, world)]
    if by == "config.json":
        loads.append(
            lambda: model_reference.check(quiet_recipe(large_model_reference=str(tmp_path), prompt_dataset="x"))
        )
    for load in loads:
        assert f"is a {kind} model, with layers that keep a recurrent state" in refused(load)


# What a recipe names a model for


def test_what_a_model_is_named_for_is_checked_before_anything_is_trained(
    tiny: Path, world: World, tmp_path: Path, adapter: Path
) -> None:
    def named(**values: Any) -> str:
        with pytest.raises(PreferentError) as caught:
            model_reference.check(quiet_recipe(**{"large_model_reference": str(tiny), "prompt_dataset": "x"} | values))
        return str(caught.value)

    saving.save(language_models.load_scorer(tiny, world, 0, seed=1), tmp_path / "reward", {}, "# test\n")
    here = {"name": "a", "model": str(tmp_path / "reward")}
    assert named(reward={"sources": [{"source": str(tiny)}]}).startswith(
        f"reward.sources.0.source: {tiny}: is not a reward"
    )
    assert named(reward={"sources": [{"source": str(adapter)}]}).startswith("reward.sources.0.source: ")
    assert named(compare={"judges": [here]}).startswith("compare.judges.0.model: ")
    assert "compare.judges.0.model wants one that writes text" in named(compare={"judges": [here]})
    assert named(reward_model_reference=str(adapter)).startswith("reward_model_reference: ")
    config(num_labels=3, id2label={"0": "a", "1": "b", "2": "c"})(tmp_path / "reward")
    assert "returns 3 numbers" in named(reward={"sources": [{"source": str(tmp_path / "reward")}]})


def test_a_model_on_the_hub_is_looked_at_when_it_may_be_fetched(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, revision: str | None, patterns: object) -> Path:
        asked.append((repository, revision, patterns))
        return tiny

    monkeypatch.setattr(model_reference, "_download", download)
    recipe = quiet_recipe(
        large_model_reference=str(tiny), prompt_dataset="x", reward={"sources": [{"source": "owner/judge@v1"}]}
    )
    model_reference.check(recipe)
    assert asked == []
    with pytest.raises(UsageError, match=r"reward.sources.0.source: .* is not a reward model"):
        model_reference.check(recipe, fetch=True)
    assert asked == [("owner/judge", "v1", model_reference.CONFIGURATION)]
