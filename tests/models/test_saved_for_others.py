"""What the card of a saved model says, done in a process that does not know preferent, elsewhere, after a move."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import yaml
from conftest import SENTENCES, quiet_recipe
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from preferent.data.tokenizer import Tokenizer
from preferent.data.tokenizer.tokenizer_files import PAD, with_pad, without_pad
from preferent.models import language_models, saving
from preferent.models.world import World
from preferent.rollouts import measurement

TEXTS = ["À la carte: the old man walked along the river.", "Mary found it.", "A dog"]
ELSEWHERE = """
import json, sys
sys.modules["preferent"] = None  # an import of it fails
import torch
answers = []
for task, lines in json.load(sys.stdin):
    exec(lines)
    with torch.no_grad():
        if task == "policy":
            answers.append([model(**tokenizer(text, return_tensors="pt")).logits[0, -1].tolist() for text in TEXTS])
            continue
        texts, ways = [text + tokenizer.eos_token for text in TEXTS], []
        ways.append([model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts])
        for side in ("right", "left"):
            batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
            ways.append(model(**batch).logits[:, 0].tolist())
        pads = [tokenizer.pad_token, tokenizer.pad_token_id, model.config.pad_token_id]
        answers.append([ways, tokenizer(TEXTS[0]).input_ids, pads])
print(json.dumps(answers))
"""
SPECIAL = "<|endoftext|>"
FAMILIES = ("llama", "gpt2", "gpt2-spare")
CASES = [(family, rank, kind) for family in FAMILIES for rank in (0, 2) for kind in ("reward", "policy")]
CASES += [("llama", 2, "policy-sft"), ("gpt2", 2, "reward-sft")]


def byte_level(folder: Path, spare: int) -> Path:
    """A model as GPT-2 is: one special token, which is pad too; `spare` embeddings are no token's."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=300, special_tokens=[SPECIAL], initial_alphabet=alphabet)
    )
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({f"{role}_token": SPECIAL for role in ("bos", "eos", "unk", "pad")})
    )
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size() + spare, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def nudge(network: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.trainable().items():
            if parameter.dim() > 1 and not name.startswith("score"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def make(run: Path, base: Path, rank: int, kind: str) -> tuple[Any, Path]:
    """The network that a run trains from a base, or from its own `sft` model, and the folder where it saves it."""
    world = World.of(quiet_recipe())
    if kind.endswith("-sft"):
        tuned = language_models.load_policy(base, world, 0)
        nudge(tuned)
        base = run / "sft/model"
        saving.save(tuned, base, dict(tuned.trainable()), "# test\n")
    policy = kind.startswith("policy")
    load = language_models.load_policy if policy else language_models.load_scorer
    network = load(base, world, rank, **({} if policy else {"seed": 3}))
    nudge(network)
    folder = run / ("policy/model" if policy else "reward/model")
    saving.save(network, folder, dict(network.trainable()), "# test\n")
    return network, folder


def ours(network: Any) -> Any:
    """What the network computes here."""
    tokenizer = network.tokenizer
    ids = [tokenizer.encode_text(text) for text in TEXTS]
    if isinstance(network, language_models.Policy):
        with torch.no_grad():
            return [network.body(torch.tensor([row])).logits[0, -1].tolist() for row in ids]
    return measurement.last_scores(network, [np.array([*row, tokenizer.eos_id], np.int32) for row in ids], 500).tolist()


def lines_of(folder: Path) -> str:
    """The first lines of Python in the card of a model, with its folder."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    assert code.count("PATH/OF/THIS/FOLDER") == 1
    return code.replace("PATH/OF/THIS/FOLDER", str(folder))


def elsewhere(work: list[tuple[str, str]], place: Path) -> Any:
    """What the lines of cards do in a process without preferent, in another working directory."""
    code = f"TEXTS = {TEXTS!r}\n{ELSEWHERE}"
    env = {name: word for name, word in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(work), cwd=place, env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def bases(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {"llama": tiny, "gpt2": byte_level(place / "gpt2", 0), "gpt2-spare": byte_level(place / "spare", 8)}


@pytest.fixture(scope="module")
def saved(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, str], Any]:
    """For each case: the network, its moved folder, and what the card's lines say elsewhere."""
    place = tmp_path_factory.mktemp("runs")
    made = {}
    for number, case in enumerate(CASES):
        network, folder = make(place / f"before-{number}", bases[case[0]], *case[1:])
        shutil.move(place / f"before-{number}", place / f"after-{number}")
        made[case] = network, place / f"after-{number}" / folder.relative_to(place / f"before-{number}")
    work = [(kind.split("-")[0], lines_of(made[family, rank, kind][1])) for family, rank, kind in CASES]
    (place / "cwd").mkdir()
    told = elsewhere(work, place / "cwd")
    return {case: (*made[case], answer) for case, answer in zip(CASES, told, strict=True)}


@pytest.mark.acceptance
@pytest.mark.parametrize("case", [case for case in CASES if case[2].startswith("policy")])
def test_a_policy_loads_by_its_card(saved: dict[tuple[str, int, str], Any], case: tuple[str, int, str]) -> None:
    network, folder, told = saved[case]
    assert np.allclose(told, ours(network), atol=1e-5)
    again = language_models.load_policy(folder, network.world)
    assert ours(again) == ours(network) and again.tokenizer.fingerprint == network.tokenizer.fingerprint


@pytest.mark.parametrize("case", [case for case in CASES if case[2].startswith("reward")])
def test_a_reward_model_scores_alone_and_in_batches_as_here(
    saved: dict[tuple[str, int, str], Any], case: tuple[str, int, str]
) -> None:
    """Pad tokens stand at no place where the score is read, and the pad token takes no character from a text."""
    network, folder, (ways, ids, (pad, pad_id, configured)) = saved[case]
    expected = ours(network)
    for way in ways:
        assert way == pytest.approx(expected, abs=1e-5)
    assert ids == network.tokenizer.encode_text(TEXTS[0])
    assert pad_id == configured and pad == ("<unk>" if case[0] == "llama" else PAD)
    again = language_models.load_scorer(folder, network.world)
    assert ours(again) == expected
    assert (again.tokenizer.fingerprint == network.tokenizer.fingerprint and again.tokenizer.pad_id != pad_id) or (
        case[0] == "llama"
    )


@pytest.mark.parametrize("rank", [0, 2])
def test_only_a_reward_model_gets_a_pad_token(saved: dict[tuple[str, int, str], Any], rank: int) -> None:
    """A policy keeps the tokens of its source, and its files agree among themselves."""
    for kind, named in (("policy", SPECIAL), ("reward", PAD)):
        folder = saved["gpt2", rank, kind][1]
        assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == named
        if rank == 0:
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "config.json").read_text())
            assert config["pad_token_id"] == backend.token_to_id(named)
            assert config["vocab_size"] == backend.get_vocab_size(), "one row more where none is free"
    spare = saved["gpt2-spare", 0, "reward"][1]
    assert json.loads((spare / "config.json").read_text())["vocab_size"] == 300 + 8


def test_a_further_pad_token_leaves_no_trace(bases: dict[str, Path], tmp_path: Path) -> None:
    text = (bases["gpt2"] / "tokenizer.json").read_text()
    empty = json.dumps(json.loads(text) | {"added_tokens": []})
    for before in (text, empty, json.dumps(json.loads(text))):
        after = with_pad(before, 300)
        assert json.loads(after)["added_tokens"][-1]["content"] == PAD and without_pad(after) == before
        assert without_pad(before) == before
    foreign = json.loads(with_pad(text, 300))
    (tmp_path / "tokenizer.json").write_text(json.dumps(foreign, indent=2))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL, "pad_token": PAD}))
    assert Tokenizer.load(tmp_path).pad_id == 300, "a pad token of others is theirs"


def test_a_card_has_metadata(saved: dict[tuple[str, int, str], Any]) -> None:
    for case, (_, folder, _) in saved.items():
        front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
        assert front["library_name"] == ("peft" if case[1] else "transformers")
        assert ("lora" in front["tags"]) == bool(case[1]) and "preferent" in front["tags"]
        assert front["pipeline_tag"] == ("text-generation" if case[2].startswith("policy") else "text-classification")


def test_base_and_licence_are_inherited(tiny: Path, tmp_path: Path) -> None:
    """Of the hub's cache the base is known, of a card the licence; a further model made from that knows both."""
    place = tmp_path / "models--owner--name/snapshots/0123"
    shutil.copytree(tiny, place)
    (place / "README.md").write_text("---\nlicense: mit\ntags: [theirs]\n---\n# Base\n")
    for source, folder in ((place, tmp_path / "sft/model"), (tmp_path / "sft/model", tmp_path / "policy/model")):
        network = language_models.load_policy(source, World.of(quiet_recipe()), 0)
        saving.save(network, folder, {}, "# test\n")
        front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
        assert (front["base_model"], front["license"]) == ("owner/name", "mit") and "theirs" not in front["tags"]


def test_files_have_the_modes_of_the_umask(tiny: Path, tmp_path: Path) -> None:
    for mask in (0o022, 0o027):
        before = os.umask(mask)
        try:
            for rank in (0, 2):
                network = language_models.load_policy(tiny, World.of(quiet_recipe()), rank)
                saving.save(network, tmp_path / f"{mask}-{rank}", dict(network.trainable()), "# test\n")
                modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / f"{mask}-{rank}").iterdir()}
                assert modes == {0o666 & ~mask}
        finally:
            os.umask(before)
