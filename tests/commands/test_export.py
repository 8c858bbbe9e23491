"""What leaves a run loads in other programs, and computes there what it computes here."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import quiet_recipe
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from preferent.cli import main
from preferent.commands import chat_template_export
from preferent.commands.inference import export, gguf_export, gguf_import
from preferent.commands.python_api import Run
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Message, Prompt
from preferent.errors import PlatformError, UsageError
from preferent.models import language_models, weight_averaging
from preferent.models.world import World
from preferent.pipelines import finished_run
from preferent.rewards.scoring import RewardModel
from preferent.rollouts import measurement

IDS = torch.tensor([[1, 270, 280, 290, 275]])
LLAMA2 = "{% if messages %}[INST] <<SYS>>{% endif %}"
CHAT = {"messages": [{"author": "user", "content": "the cat"}]}


def logits(folder: Path) -> torch.Tensor:
    """What our own code says about the ids."""
    policy = language_models.load_policy(folder, World.of(quiet_recipe()))
    policy.masked_ids.resize_(0)
    with torch.no_grad():
        return policy.logits(policy.hidden(IDS)[0])


def loading(folder: Path) -> str:
    """The lines of a card that load the model, with its folder."""
    text = (folder / "README.md").read_text()
    return re.search(r"```python\n(.*?)```", text, re.S)[1].replace("PATH/OF/THIS/FOLDER", str(folder))


@pytest.mark.parametrize(("rank", "sft"), [(0, False), (2, False), (2, True)])
def test_merged_computes_the_same(make_run, tiny, tmp_path, rank, sft):
    folder = make_run(rank, sft, instruction="Be brief.")
    export.write(folder, tmp_path / "out", "merged")
    assert not (tmp_path / "out/adapter_config.json").exists()
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits[0]
    assert torch.allclose(found, logits(folder / "policy/model"), atol=1e-5)
    assert not torch.allclose(found, logits(tiny), atol=1e-2)
    card = (tmp_path / "out/README.md").read_text()
    assert "Be brief." in card and "{" not in card and str(tmp_path) not in card


@pytest.mark.parametrize("sft", [False, True])
def test_adapter_knows_its_base(make_run, tmp_path, sft):
    """Also when the export was moved, and the run that made its base is gone."""
    folder = make_run(2, sft)
    expected = logits(folder / "policy/model")
    export.write(folder, tmp_path / "out", "adapter")
    (tmp_path / "out").rename(tmp_path / "moved")
    folder.rename(folder.with_name("gone"))
    loaded: dict = {}
    exec(loading(tmp_path / "moved"), loaded)
    with torch.no_grad():
        assert torch.allclose(loaded["model"](IDS).logits[0], expected, atol=1e-5)
        if not sft:
            found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "moved")(IDS).logits[0]
            assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(logits(tmp_path / "moved"), expected, atol=1e-5)
    assert (tmp_path / "moved/base/model.safetensors").exists() == sft
    assert ("vllm serve PATH/OF/THIS/FOLDER/base" in (tmp_path / "moved/README.md").read_text()) == sft


def test_every_member_of_an_ensemble_leaves(make_run, tmp_path):
    folder = make_run(reward={"members": 2})
    export.write(folder, tmp_path / "out", "reward")
    for name in ("reward", "reward-2"):
        ours = load_file(folder / name / "model/model.safetensors")["score.weight"]
        assert torch.equal(load_file(tmp_path / "out" / name / "model.safetensors")["score.weight"], ours)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("instruction", [None, 'Say "it" so:\nshort.'])
@pytest.mark.parametrize("chat", [False, True])
def test_reward_scores_as_rewardbench_calls_it(make_run, tmp_path, rank, instruction, chat):
    """Text by the chat template, ids by the tokenizer, score at the last token: what the run's own reward says."""
    folder = make_run(rank, prompt=CHAT if chat else None, instruction=instruction)
    if chat:
        (folder / "reward/model/chat_template.jinja").write_text(LLAMA2)
    export.write(folder, tmp_path / "out", "reward")
    loaded: dict = {}
    exec(loading(tmp_path / "out"), loaded)
    tokenizer, scorer = loaded["tokenizer"], loaded["model"]
    assert scorer.config.num_labels == 1 and '[{"role": "user"' in (tmp_path / "out/README.md").read_text()
    messages = [{"role": "user", "content": "the old dog"}, {"role": "assistant", "content": "It ran."}]
    if not chat:
        messages[1]["content"] = " It ran."
    inputs = tokenizer([tokenizer.apply_chat_template(messages, tokenize=False)] * 2, padding=True, return_tensors="pt")
    assert inputs.input_ids[0, 0] == tokenizer.bos_token_id != inputs.input_ids[0, 1]
    assert inputs.input_ids[0, -1] == tokenizer.eos_token_id
    ours = RewardModel.load(folder / "reward/model", finished_run.of(folder).recipe, World.of(quiet_recipe()))
    prompt = Prompt(messages=(Message("user", "the old dog"),)) if chat else Prompt(input_text="the old dog")
    expected = ours.score_ids(
        [ours.scorer.tokenizer.encode_prompt(prompt, instruction, 64)[0]],
        [ours.scorer.tokenizer.encode_answer(prompt, instruction, messages[1]["content"], 64)[0]],
    )
    with torch.no_grad():
        assert scorer(**inputs).logits[:, 0].tolist() == pytest.approx([expected[0]] * 2, abs=1e-5)
    assert "--max_length 44 " in (tmp_path / "out/README.md").read_text()


def test_averaged_weights_leave_as_one_model(make_run, tmp_path):
    folder = make_run(2, reward={"members": 2, "combine": "weights"})
    export.write(folder, tmp_path / "out", "reward")
    members, world = list(finished_run.of(folder).rewards.values()), World.of(quiet_recipe())
    ids = [np.array([1, 260, 270, 265])]
    scores = [
        measurement.last_scores(scorer, ids, 100)
        for scorer in (
            language_models.load_scorer(tmp_path / "out", world),
            weight_averaging.load(members, world),
            language_models.load_scorer(members[0], world),
        )
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5) and scores[0] != pytest.approx(scores[2], abs=1e-3)


@pytest.mark.parametrize("chat", [False, True])
def test_gguf_has_a_modelfile(make_run, tmp_path, chat):
    folder = make_run(2, prompt=CHAT if chat else None, instruction="Be brief.", sampler={"temperature": 0.7})
    if chat:
        (folder / "policy/model/chat_template.jinja").write_text(LLAMA2)
    export.write(folder, tmp_path / "out", "gguf")
    text = (tmp_path / "out/Modelfile").read_text()
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.M | re.S)[1]
    export.write(folder, tmp_path / "merged", "merged")
    assert template == chat_template_export.go_template(Tokenizer.load(tmp_path / "merged"), "<s>", chat)
    assert ("[INST]" in template) == chat and "<s>[INST] {{ if" not in template
    for line in ('SYSTEM """Be brief."""', "PARAMETER temperature 0", "PARAMETER num_ctx 44", 'PARAMETER stop "</s>"'):
        assert line in text.splitlines()
    told = (tmp_path / "out/GGUF.txt").read_text()
    assert "ollama create" in told and template in told and "matrices in f16" in told
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.gguf", "Modelfile", "GGUF.txt"}
    assert not list(tmp_path.glob(".*"))


def test_the_precision_of_gguf_is_python_s_too(make_run, tmp_path):
    run = Run(make_run(2))
    run.export(tmp_path / "out", "gguf", precision="bf16")
    assert "matrices in bf16" in (tmp_path / "out/GGUF.txt").read_text()
    with pytest.raises(UsageError, match="bf16: is for --what gguf"):
        run.export(tmp_path / "merged", "merged", precision="bf16")


def test_gguf_holds_the_tuned_weights(make_run, tmp_path):
    """In half precision, as the base is stored in fp32; llama.cpp wants vectors in fp32."""
    folder = make_run(2)
    export.write(folder, tmp_path / "out", "gguf")
    gguf_import.read(tmp_path / "out/model.gguf", tmp_path / "back")
    export.write(folder, tmp_path / "merged", "merged")
    tuned, back = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "back"))
    assert tuned.keys() == back.keys()
    for name, weight in tuned.items():
        assert torch.equal(back[name], (weight.half() if weight.dim() > 1 else weight).bfloat16()), name


def test_a_shape_that_is_not_written_as_gguf_leaves_nothing(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_export, "ARCHITECTURES", {})
    with pytest.raises(UsageError, match=r"LlamaForCausalLM.*convert_hf_to_gguf.py"):
        export.write(make_run(), tmp_path / "out", "gguf")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="--precision f16"):
        export.write(make_run(), tmp_path / "out", "merged", "f16")


def test_sampled_answers_are_sampled_there_too():
    recipe = quiet_recipe(infer={"sampling_strategy": "temperature_sampling"}, sampler={"temperature": 0.7})
    assert "PARAMETER temperature 0.7\n" in chat_template_export.modelfile(None, ["</s>"], recipe)
    assert "TEMPLATE" not in chat_template_export.modelfile(None, ["</s>"], recipe)
    with pytest.raises(UsageError, match='"""'):
        chat_template_export.modelfile(None, ["</s>"], quiet_recipe(instruction='a """ b'))


def test_licences_travel(make_run, tiny, tmp_path):
    (tiny / "LICENSE.txt").write_text("mine")
    try:
        folder = make_run(2)
        for what in ("merged", "adapter", "reward", "gguf"):
            export.write(folder, tmp_path / what, what)
            assert (tmp_path / what / "LICENSE.txt").read_text() == "mine"
    finally:
        (tiny / "LICENSE.txt").unlink()


def test_what_cannot_be_had_is_refused(make_run, tmp_path, monkeypatch, capsys):
    folder = make_run(reward={"sources": "some:function"})
    for what, why in (("adapter", "--what merged"), ("reward", "some:function")):
        with pytest.raises(UsageError, match=why):
            export.write(folder, tmp_path / "out", what)
    with pytest.raises(UsageError, match="is not a run directory"):
        export.write(tmp_path, tmp_path / "out", "merged")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("precious")
    monkeypatch.setattr("sys.argv", ["preferent", "export", str(folder), "--out", str(tmp_path / "full")])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 2 and "exists already" in capsys.readouterr().err
    assert (tmp_path / "full/mine").read_text() == "precious" and not (tmp_path / "out").exists()
    (folder / "policy/DONE").unlink()
    with pytest.raises(PlatformError, match="preferent run"):
        export.write(folder, tmp_path / "out", "merged")


def test_the_card_holds_the_verdict(make_run, tmp_path):
    folder = make_run()
    (folder / "comparison").mkdir()
    judge = {
        "interval": [0.5, 0.7],
        "prompts": 10,
        "independent": True,
        "win_rate": 0.6,
        "n": 10,
        "kind": "reward_model",
    }
    sides = [{"key": "a", "name": "tuned"}, {"key": "b", "name": "base"}]
    verdict = {"headline": "judge", "judges": {"judge": judge}, "kl": {"mean": 1.25}, "sides": sides}
    (folder / "comparison/metrics.json").write_text(json.dumps(verdict))
    export.write(folder, tmp_path / "out", "merged")
    assert "60.0% of 10 pairs" in (tmp_path / "out/README.md").read_text()


def test_the_card_says_what_the_model_was_made_of(make_run, tmp_path):
    values = {"kl_coeff": 0.25, "prompt_dataset": ["hf://own/prompts:small/train", "more.jsonl"]}
    folder = make_run(**values)
    (folder / "policy/stage.json").write_text(json.dumps({"facts": {"steps": 1200, "best_step": 900}}))
    (folder / "comparison").mkdir()
    sides = [{"name": "tuned"}, {"name": "base"}]
    verdict = {"headline": None, "kl": {"mean": 1.25}, "sides": sides}
    (folder / "comparison/metrics.json").write_text(json.dumps(verdict))
    export.write(folder, tmp_path / "out", "merged")
    card = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers" and front["tags"] == ["preferent", "ppo"]
    assert front["datasets"] == ["own/prompts"] and "base_model" not in front, "a local folder is no name on the hub"
    for line in (
        "- preferences: `p.jsonl`",
        "- prompts: `hf://own/prompts:small/train`, `more.jsonl`",
        "- steps: 1,200, of which step 900 was kept",
        "- kl_coeff: 0.25",
        "- KL from the base: 1.25 nats per answer",
    ):
        assert line in card.splitlines()


def test_a_small_folder_has_a_size(make_run, tmp_path):
    said = export.write(make_run(), tmp_path / "out", "merged")
    assert re.search(r"merged, [1-9][\d,]* kB; README.md says", said)
