"""Export of a run's policy or reward model as a folder for other programs, with a README that says how to load it."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from preferent import files
from preferent.commands import chat_template_export
from preferent.commands.inference import gguf_export
from preferent.config import model_reference, stage_graph
from preferent.config.gcpc_names import resolve_model
from preferent.config.recipe import Recipe, tuned_by
from preferent.config.sections import paths
from preferent.data.tokenizer import Tokenizer
from preferent.data.tokenizer.chat_templates import ChatOptions
from preferent.errors import PreferentError, UsageError
from preferent.evaluation import verdict_sentence
from preferent.models import language_models, saving, weight_averaging
from preferent.models.language_models import Network, Scorer
from preferent.models.world import QUANTIZATION, World
from preferent.pipelines import finished_run
from preferent.pipelines.finished_run import FinishedRun
from preferent.runs import model_card
from preferent.runs.directory import RunDirectory

MERGED = """# {name}, tuned from human preferences

{method} from {base}, by preferent. {verdict}

{facts}
{{loading}}

or `vllm serve {folder}`. {how_asked}
"""
ADAPTER = """# {name}, tuned from human preferences: a LoRA adapter

{method} from {base}, by preferent. {verdict} The adapter holds only what changed; the model below it is needed too.

{facts}
{{loading}}

or `vllm serve {below} --enable-lora --lora-modules {name}={folder}`. {how_asked}
"""
REWARD = """# {name}: a reward model

Trained on human preferences by preferent. It gives one number, the raw score of prompt and answer, read at the last
token, which is the EOS that closes the answer. {template}

{facts}
{{loading}}

```python
chat = [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]
text = tokenizer.apply_chat_template(chat, tokenize=False)
score = model(**tokenizer(text, return_tensors="pt")).logits.item()
```

RewardBench reads it as it is:

    rewardbench --model {folder} --dataset PAIRS.jsonl --load_json --max_length {longest} --batch_size 8

where a row of PAIRS.jsonl has `prompt`, `chosen` and `rejected`. A longer text loses its end there, and with it the
place where the score is read: leave such rows out.
"""
OURS = """Its chat template writes that text, the instruction of the run included, without BOS,
which the tokenizer puts in front."""
THEIRS = """Its chat template is the model's own{context}; if it writes
BOS too, encode its text with add_special_tokens=False."""
BASE = "base"
"""The folder of an exported adapter that has a copy of its base, if the run made that."""
GGUF = """How to run this model with llama.cpp and Ollama. Start in this folder.
model.gguf holds the tuned model: {notes}.

1. Ollama, which reads the Modelfile beside this text:

     ollama create {name} -f Modelfile
     ollama run {name}

2. Or llama.cpp alone (as LLAMA_CPP), with a prompt written out as below:

     LLAMA_CPP/build/bin/llama-completion -m model.gguf -no-cnv -f PROMPT.txt -n {answer} \\
       {sampling} --min-p 0 --repeat-penalty 1

3. Smaller, with some loss: LLAMA_CPP/build/bin/llama-quantize model.gguf model-q8.gguf Q8_0
   (then name that file in the first line of Modelfile).

{template}
Leave out spaces at the end of a prompt: the answer begins with its own.
"""
NO_TEMPLATE = """The chat template of this model does more than put texts around the turns, so the Modelfile has no
TEMPLATE: Ollama takes the one inside the GGUF file if it knows it. Compare what it asks with
tokenizer.apply_chat_template before you believe its answers.
"""
TEMPLATE = """The TEMPLATE in Modelfile asks as preferent asks in this run{turns};
SYSTEM is the run's instruction, where it has one:

{example}
"""


def write(run_folder: Path, out: Path, what: str, precision: str | None = None) -> str:
    """Write `what` (merged, adapter, reward or gguf) of a run to the folder `out`; return a line for the user.

    `precision` (bf16 or f16) is that of the matrices in a GGUF file. Raises `UsageError` if `out` is not empty, the run
    has no adapter or reward model to write, or its policy has a shape that is not written as GGUF.
    """
    if precision is not None and what != "gguf":
        raise UsageError(f"--precision {precision}: is for --what gguf; other models keep the precision of their base")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists already and is not empty; name a new folder with --out")
    finished = finished_run.of(run_folder)
    if what == "gguf":
        gguf(finished, out, precision)
    else:
        {"merged": merged, "adapter": adapter, "reward": reward}[what](finished, out)
    count = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    size = f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"
    return f"{out}: {what}, {size}; {'GGUF.txt' if what == 'gguf' else 'README.md'} says how to use it"


def merged(finished: FinishedRun, out: Path) -> None:
    """Write the tuned policy as one full model in the Hugging Face layout, in the dtype of its base."""
    policy = language_models.load_policy(finished.tuned, _world(finished.recipe))
    _save(policy, out, _card(MERGED, finished), _front(finished))


def adapter(finished: FinishedRun, out: Path) -> None:
    """Write the tuned policy as its LoRA adapter, in PEFT's layout, which names its base model.

    A base that the run made (`sft`) is copied into the folder, so that the two can go anywhere together.
    """
    if not finished.adapter:
        raise UsageError(
            f"{finished.folder}: has no adapter, because every weight of its policy was trained; use --what merged"
        )
    below = model_reference.adapter_base(finished.tuned)
    inside = finished.folder.resolve() in below.resolve().parents
    shutil.copytree(finished.tuned, out, dirs_exist_ok=True, copy_function=shutil.copyfile)
    if inside:
        shutil.copytree(below, out / BASE, copy_function=shutil.copyfile)
    base = (BASE, None) if inside else model_reference.name_of(below)
    saving.name_base(out, base)
    front = model_card.metadata(below, False, True, model_card.copy_licences(below, out)) | _front(finished)
    text = model_card.render(_card(ADAPTER, finished), front, model_card.loading(False, base, inside))
    files.write_atomic(out / "README.md", text)


def reward(finished: FinishedRun, out: Path) -> None:
    """Write the reward model that the run trained, as RewardBench loads it.

    Each member of an ensemble gets a folder of its own; members whose weights are averaged are written as one model.
    """
    trained = [finished.rewards[name] for name in stage_graph.members(finished.rewards)]
    if not trained:
        named = ", ".join(part.source for part in finished.recipe.reward.parts)
        why = (
            f"its method is {finished.recipe.method}"
            if stage_graph.direct(finished.recipe)
            else f"its reward was {named}"
        )
        raise UsageError(f"{finished.folder}: trained no reward model: {why}")
    world = _world(finished.recipe)
    if finished.recipe.reward.combine == "weights":
        _member(finished, weight_averaging.load(trained, world), out)
        return
    for name, source in zip(stage_graph.members(finished.rewards), trained, strict=True):
        _member(finished, language_models.load_scorer(source, world), out / name if len(trained) > 1 else out)


def _member(finished: FinishedRun, scorer: Scorer, out: Path) -> None:
    """Write one reward model: a full sequence classifier with one label, and a chat template."""
    longest = finished.recipe.prompt_sequence_length + finished.recipe.target_sequence_length
    name, instruction = finished.folder.resolve().name, finished.recipe.instruction
    llama2 = finished.converses() and scorer.tokenizer.is_llama2
    ours = llama2 or not finished.converses()
    context = f", and the run's instruction is the system text: {instruction!r}" if instruction else ""
    template = OURS if ours else THEIRS.format(context=context)
    card = {"longest": longest, "template": template, "facts": "".join(_data(finished))}
    text = REWARD.format(name=name, folder=model_card.FOLDER, **card)
    _save(scorer, out, text, _datasets(finished))
    if ours:
        files.write_atomic(out / "chat_template.jinja", chat_template_export.score_template(llama2, instruction))


def gguf(finished: FinishedRun, out: Path, precision: str | None = None) -> None:
    """Write the merged policy as a GGUF file, with a Modelfile for Ollama and a text on how to run both."""
    aside = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    with files.writing(out):
        try:
            merged(finished, aside / "merged")
            (aside / "new").mkdir()
            name = finished.folder.resolve().name.lower()
            notes = gguf_export.write(aside / "merged", aside / "new/model.gguf", precision, name)
            _beside_gguf(finished, aside / "merged", aside / "new", "; ".join(notes))
            os.replace(aside / "new", out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _beside_gguf(finished: FinishedRun, merged_folder: Path, out: Path, notes: str) -> None:
    """Write the Modelfile, the licences, and the text that says how to run them."""
    recipe = finished.recipe
    tokenizer = Tokenizer.load(merged_folder, ChatOptions.of(recipe))
    bos = files.read_json(merged_folder / "tokenizer_config.json").get("bos_token") or ""
    adds_bos = tokenizer.bos_id is not None and tokenizer.encode_text("a")[:1] == [tokenizer.bos_id]
    template = chat_template_export.go_template(tokenizer, bos if adds_bos else "", finished.converses())
    model_card.copy_licences(merged_folder, out)
    files.write_atomic(out / "Modelfile", chat_template_export.modelfile(template, tokenizer.end_texts, recipe))
    turns = "" if finished.converses() else " (one prompt at a time: of a conversation, the last message)"
    text = GGUF.format(
        name=finished.folder.resolve().name.lower(),
        notes=notes,
        answer=recipe.target_sequence_length,
        sampling=_sampling(recipe),
        template=NO_TEMPLATE if template is None else TEMPLATE.format(turns=turns, example=template),
    )
    files.write_atomic(out / "GGUF.txt", text)


def _sampling(recipe: Recipe) -> str:
    """Return the run's sampling settings as options of llama.cpp."""
    if recipe.infer.sampling_strategy == "greedy":
        return "--temp 0"
    return f"--temp {recipe.sampler.temperature} --top-p {recipe.sampler.top_p} --top-k {recipe.sampler.top_k}"


def _world(recipe: Recipe) -> World:
    """Return the CPU in fp32, so that merging rounds once."""
    threads, chat = torch.get_num_threads(), ChatOptions.of(recipe)
    return World(0, 1, torch.device("cpu"), torch.float32, threads, recipe.trust_remote_code, chat=chat)


def _save(network: Network, out: Path, card: str, front: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if network.peft is None:
        saving.save(network, out, {}, card, front)
    else:
        saving.save_merged(network, out, {}, card, front)


def _card(text: str, finished: FinishedRun) -> str:
    return text.format(
        name=finished.folder.resolve().name,
        folder=model_card.FOLDER,
        method=tuned_by(finished.recipe),
        base=_base_name(finished),
        below=_below(finished) if finished.adapter else "",
        verdict=_verdict(finished.folder),
        facts="".join(_facts(finished)),
        how_asked=_how_asked(finished.recipe),
    )


def _front(finished: FinishedRun) -> dict[str, Any]:
    """Return the metadata of a policy that only the run knows."""
    tags = ["preferent", tuned_by(finished.recipe).lower().replace(" ", "-")]
    reference = resolve_model(finished.recipe.large_model_reference)
    hub = {} if Path(reference).exists() else {"base_model": reference.partition("@")[0]}
    return {"tags": [*tags, "lora"] if finished.adapter else tags} | hub | _datasets(finished)


def _sources(finished: FinishedRun) -> dict[str, list[str]]:
    """Return the data that the recipe names, by what they are."""
    recipe = finished.recipe
    named = {"preferences": recipe.preference_dataset, "prompts": recipe.prompt_dataset}
    named |= {"demonstrations": None if recipe.sft is None else recipe.sft.dataset}
    return {kind: paths(source) for kind, source in named.items() if source}


def _datasets(finished: FinishedRun) -> dict[str, list[str]]:
    """Return the data sets of the hub as metadata."""
    every = [name for names in _sources(finished).values() for name in names]
    named = [match[1] for name in every if (match := re.match(r"hf://([\w.-]+/[\w.-]+)", name))]
    return {"datasets": list(dict.fromkeys(named))} if named else {}


def _data(finished: FinishedRun) -> Iterator[str]:
    for kind, names in _sources(finished).items():
        yield f"- {kind}: {', '.join(f'`{name}`' for name in names)}\n"
    if finished.recipe.quantize:
        yield f"- adapters were trained on {QUANTIZATION}; the base here is as it was\n"


def _facts(finished: FinishedRun) -> Iterator[str]:
    """Yield lines on data, quantization, steps, the coefficient of the KL penalty and the KL."""
    yield from _data(finished)
    directory, recipe = RunDirectory(finished.folder), finished.recipe
    with contextlib.suppress(OSError, PreferentError):
        facts = files.read_json(directory.policy.description)["facts"]
        best = facts.get("best_step")
        yield f"- steps: {facts['steps']:,}" + ("" if best is None else f", of which step {best:,} was kept") + "\n"
    if not stage_graph.direct(recipe):
        yield f"- kl_coeff: {recipe.kl_coeff}\n"
    with contextlib.suppress(OSError, PreferentError):
        if divergence := files.read_json(directory.comparison.metrics)["kl"]:
            yield f"- KL from the base: {divergence['mean']:.2f} nats per answer\n"


def _below(finished: FinishedRun) -> str:
    """Return the model that the adapter was trained on, as an argument of vLLM."""
    base = model_reference.adapter_base(finished.tuned)
    if finished.folder.resolve() in base.resolve().parents:
        return f"{model_card.FOLDER}/{BASE}"
    name, revision = model_reference.name_of(base)
    return f"{name} --revision {revision}" if revision else name


def _base_name(finished: FinishedRun) -> str:
    """Return the name of the model that tuning started from."""
    tuned_first = " after supervised fine-tuning" if finished.recipe.sft is not None else ""
    return f"`{finished.recipe.large_model_reference.rstrip('/').split('/')[-1]}`{tuned_first}"


def _how_asked(recipe: Recipe) -> str:
    if recipe.instruction is None:
        return ""
    return f"Prompts were asked under this instruction, joined to them as in the run: {recipe.instruction!r}."


def _verdict(folder: Path) -> str:
    """Return the run's verdict in a sentence, and whether the policy is its base; empty without a comparison."""
    run = RunDirectory(folder)
    policy = files.read_json(run.policy.description) if run.policy.description.exists() else {}
    unchanged = verdict_sentence.unchanged(policy.get("facts", {}))
    try:
        verdict = verdict_sentence.verdict_sentence(files.read_json(run.comparison.metrics))
    except (OSError, PreferentError):
        return unchanged
    return f"The verdict: {verdict}. {unchanged}".strip()
