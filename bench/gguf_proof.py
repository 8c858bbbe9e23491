"""llama.cpp against us on the same model: does it cut texts into the same tokens, and continue greedily as we do?

SmolLM2 (imported from its GGUF file and written again) and random models of the three shapes and both kinds of
tokenizer are written as `preferent export --what gguf` does. llama.cpp loads each file in an environment of its own
(the argument: its Python) and continues some prompts; so does transformers, from the folder that the file was made of,
in fp32. llama.cpp rounds activations to the precision of the weights, so a continuation may part where two tokens are
almost equally likely: then the line says where, and by how much ours preferred its token. Exits 1 where texts become
other tokens, or ours preferred its token by more than `NEARLY`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / "models/smollm2"
TOKENS = 32
NEARLY = 0.05
"""Logits; those of SmolLM2 have a standard deviation of 4."""
TEXTS = (
    "The capital of France is",
    "Once upon a time there was a girl who",
    "def add(a, b):\n    return",
    "In 1984  12 345 people, it's said,\n\n\n  walked",
    "Ünïcode: naïve café — 東京 🙂 and",
    "My mother's garden",
)
QUESTIONS = ("What is the capital of Italy?", "Name three colours.", "Write a sentence about the sea.")

LLAMA = """
import json, sys
import numpy as np
from llama_cpp import Llama, llama_get_logits_ith

asked = json.load(sys.stdin)
model = Llama(asked["path"], n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False, type_k=0, type_v=0, seed=0)
size, rows = model.n_vocab(), []
for text in asked["texts"]:
    ids = model.tokenize(text.encode(), add_bos=asked["bos"], special=True)
    model.reset()
    model.eval(ids)
    answer = []
    for _ in range(asked["tokens"]):
        logits = np.ctypeslib.as_array(llama_get_logits_ith(model.ctx, -1), (size,))
        answer.append(int(logits.argmax()))
        model.eval(answer[-1:])
    rows.append([ids, answer])
print(json.dumps(rows))
"""


def continued(folder: Path, texts: list[str], count: int) -> list[tuple[list[int], list[int], Any]]:
    """Our ids of each text, the greedy continuation, and the logits before each of its tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # llama.cpp is asked for as many tokens, also behind an end
    rows, more = [], {"output_logits": True, "return_dict_in_generate": True}
    for text in texts:
        ids = tokenizer(text).input_ids
        with torch.no_grad():
            whole = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0, **more)
        rows.append((ids, whole.sequences[0, len(ids) :].tolist(), whole.logits))
    return rows


def compare(name: str, folder: Path, texts: list[str], python: Path, precision: str) -> bool:
    """Write, load and continue one model; print a line for each difference and one sum."""
    from tokenizers import Tokenizer

    from preferent.commands.inference import gguf_export

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.gguf"
        notes = gguf_export.write(folder, path, precision, name)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        bos = tokenizer.encode("a").ids != tokenizer.encode("a", add_special_tokens=False).ids
        order = {"path": str(path), "texts": texts, "tokens": TOKENS, "bos": bos}
        done = subprocess.run([python, "-c", LLAMA], input=json.dumps(order), capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: llama.cpp does not load it: {done.stderr[-800:]}")
            return False
    theirs, ours = json.loads(done.stdout), continued(folder, texts, TOKENS)
    alike = same = near = 0
    for text, (ids, answer, logits), (their_ids, their_answer) in zip(texts, ours, theirs, strict=True):
        if ids != their_ids:
            print(f"  {text!r}: other tokens: {ids} here, {their_ids} there")
            continue
        alike += 1
        at = next((i for i, (a, b) in enumerate(zip(answer, their_answer, strict=True)) if a != b), None)
        if at is None:
            same += 1
            continue
        row = logits[at][0].float()
        gap = float(row[answer[at]] - row[their_answer[at]])
        near += gap <= NEARLY
        print(
            f"  {text!r}: parts at token {at + 1} of {TOKENS}; ours was {gap:.4f} ahead in logits ({row.std():.2f} std)"
        )
    print(f"{name}, {'; '.join(notes)}: {alike} of {len(texts)} texts the same tokens, {same} continued the same")
    return same + near == len(texts)


def random_models(place: Path) -> dict[str, Path]:
    """Small random models: each shape, with byte-level BPE or SentencePiece's."""
    sys.path.insert(0, str(ROOT / "tests"))
    import gguf_models

    return gguf_models.make_all(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=Path, help="the Python of an environment with llama-cpp-python")
    python, good = parser.parse_args().python.absolute(), True
    if SMOLLM2.exists():
        from transformers import AutoTokenizer

        chat = AutoTokenizer.from_pretrained(SMOLLM2)
        turns = [
            chat.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
            for text in QUESTIONS
        ]
        for precision in ("bf16", "f16"):
            good &= compare("SmolLM2", SMOLLM2, [*TEXTS, *turns], python, precision)
    else:
        print("models/smollm2 is not there: make smollm2")
    with tempfile.TemporaryDirectory() as place:
        for name, folder in random_models(Path(place)).items():
            good &= compare(name, folder, list(TEXTS), python, "f16")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
