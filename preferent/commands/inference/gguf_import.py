"""A GGUF file made a model folder in the Hugging Face layout: `preferent import FILE.gguf --out DIR`.

transformers reads the configuration and the weights. Before that the header is held against the file, and the model it
describes against the weights, so that what a damaged file makes of memory and time is bounded.
"""

import contextlib
import importlib
import io
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from preferent import files
from preferent.commands import gguf_header, gguf_tokenizer, rotary_stretch
from preferent.commands.gguf_header import GgufHeader, GgufTensor
from preferent.config import model_folder
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Message, Prompt
from preferent.errors import DataError, PlatformError, UsageError
from preferent.models import pretrained
from preferent.runs import interruption, model_card

INSIDE = "model.gguf"
"""The name that the file has for transformers: in a folder of its own, so that nothing else there is read."""
NUMBERS_AT_ONCE = 1 << 22
HUB = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?")
ADVICE = "use another file of the model, or its original folder"
CARD = """# {name}

Read from the GGUF file `{file}` (SHA-256 `{sha256}`) by preferent. {origin}

{facts}
"""


def read(path: Path, out: Path) -> list[str]:
    """Write the model in a GGUF file to the new folder `out`; return lines for the user.

    Weights are stored in bfloat16. Raise `UsageError` if `out` exists, `PlatformError` if the file is damaged, or not
    one that transformers reads.
    """
    if out.exists():
        raise UsageError(f"{out}: exists already; name a new folder with --out")
    header = gguf_header.read(path, _block_sizes())
    _check_kind(header)
    aside = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    with files.writing(out):
        try:
            (aside / "model").mkdir(parents=True)
            (aside / "source").mkdir()
            (aside / "source" / INSIDE).symlink_to(path.resolve())
            with _about(path, aside / "model"):
                lines = _fill(header, aside / "source", aside / "model")
            for file in (aside / "model").iterdir():
                files.share(file)
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            os.replace(aside / "model", out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        files.sync_folder(out.parent)
    return [f"{out}: {lines[0]}", *lines[1:]]


def _block_sizes() -> dict[int, tuple[int, int]]:
    """Return the sizes of blocks by the kind of a tensor; refuse without the packages that read GGUF."""
    try:
        for name in ("accelerate", "gguf"):
            importlib.import_module(name)
    except ImportError as error:
        raise PlatformError(
            f"GGUF files need a package that is missing ({error.name}): pip install 'preferent[gguf]'"
        ) from None
    return {int(kind): sizes for kind, sizes in importlib.import_module("gguf").GGML_QUANT_SIZES.items()}


def _check_kind(header: GgufHeader) -> None:
    """Refuse files that are no whole language model, or whose positions transformers would read as others."""
    metadata, path = header.metadata, header.path
    architecture = header.text("general.architecture")
    if not architecture:
        raise PlatformError(f"{path}: names no general.architecture, so nobody can know its layers; {ADVICE}")
    if header.text("general.type") not in (None, "model"):
        raise PlatformError(f"{path}: is of the type {metadata['general.type']!r:.40}, not a model; {ADVICE}")
    if (parts := header.number("split.count") or 0) > 1:
        raise PlatformError(f"{path}: is one of {parts} parts; join them first: llama-gguf-split --merge FIRST WHOLE")
    for name in ("rope.freq_base", "attention.layer_norm_rms_epsilon"):
        number = metadata.get(f"{architecture}.{name}", 1.0)
        if isinstance(number, int | float) and not 0 < number < math.inf:
            raise PlatformError(f"{path}: {architecture}.{name} is {number}, which is not above 0; {ADVICE}")
    scaling = header.text(f"{architecture}.rope.scaling.type")
    others = [tensor.name for tensor in header.tensors if tensor.name.startswith("rope_factors")]
    if scaling not in (None, "none") or others:
        raise PlatformError(f"{path}: stretches rotary positions ({scaling or others[0]}), not read here; {ADVICE}")
    for key, count in metadata.items():
        most = max(model_folder.MOST_PARTS, len(header.tensors))
        counted = isinstance(count, int) and key.startswith(f"{architecture}.") and key.endswith("count")
        if counted and not 0 <= count <= most and not key.endswith("dimension_count"):
            raise PlatformError(f"{path}: {key} is {count}, but it has {len(header.tensors)} tensors; {ADVICE}")


def _fill(header: GgufHeader, source: Path, folder: Path) -> list[str]:
    """Write all files of the model folder; return what the user should know."""
    tokenizer, notes = _write_tokenizer(header, source, folder)
    model = _load(header, source)
    config, generation = model.config, GenerationConfig()
    pad, ends = tokenizer.named_pad(new_pad=False), [tokenizer.eos_id, *sorted(tokenizer.end_ids - {tokenizer.eos_id})]
    for part in (config, generation):
        part.bos_token_id, part.pad_token_id = tokenizer.bos_id, pad
        part.eos_token_id = ends[0] if len(ends) == 1 else ends
    model.generation_config = generation
    with _quiet():
        model.save_pretrained(folder, max_shard_size="4GB")
    stored = files.read_json(folder / "config.json")
    files.write_json(folder / "config.json", {k: _short(v) for k, v in stored.items() if k != "_model_name_or_path"})
    model_folder.check(folder)
    kept = header.number("tokenizer.ggml.padding_token_id")
    if pad != kept:
        named = f"`{tokenizer_text(header, pad)}` ({pad})" if pad is not None else "a byte that no text holds"
        why = "the file names none" if kept is None else f"that of the file, {kept}, begins or ends a text"
        notes.insert(0, f"pad: {named}, because {why}")
    lines = [f"{sum(p.numel() for p in model.parameters()):,} parameters in bfloat16", *_losses(header), *notes]
    _write_card(header, folder, lines)
    return lines


def tokenizer_text(header: GgufHeader, id: int) -> str:
    """Return the text of a token."""
    return str(header.metadata["tokenizer.ggml.tokens"][id])


# Tokenizer


def _write_tokenizer(header: GgufHeader, source: Path, folder: Path) -> tuple[Tokenizer, list[str]]:
    """Write the tokenizer's files, with a pad that ends no answer; return the tokenizer, and what should be known."""
    metadata, notes = header.metadata, []
    backend = gguf_tokenizer.from_metadata(metadata)
    if backend is None:
        kind = metadata.get("tokenizer.ggml.pre") or metadata.get("tokenizer.ggml.model")
        notes.append(f"its tokenizer ({kind!r:.40}) is as transformers reads it: compare tokens with the original")
        backend = _by_transformers(header, source)
    tokens, _ = gguf_tokenizer.vocabulary(metadata)
    ends = gguf_tokenizer.ends(metadata)
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {name: gguf_tokenizer.special_id(metadata, role) for name, role in roles.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": gguf_tokenizer.adds_bos(metadata),
        "clean_up_tokenization_spaces": False,
    }
    config |= {f"{name}_token": tokens[id] for name, id in named.items() if id is not None}
    longest = header.number(f"{metadata['general.architecture']}.context_length")
    config |= {} if longest is None else {"model_max_length": longest}
    files.write_json(folder / "tokenizer.json", backend)
    files.write_json(folder / "tokenizer_config.json", config)
    files.write_json(folder / "generation_config.json", {"eos_token_id": ends})
    if template := header.text("tokenizer.chat_template"):
        files.write_atomic(folder / "chat_template.jinja", template)
    with interruption.limited(header.path), pretrained.opening(header.path, ADVICE):
        tokenizer = Tokenizer.load(folder)
        pad, taken = tokenizer.named_pad(new_pad=False), {*tokenizer.end_ids, tokenizer.bos_id}
        if pad is None or pad in taken:
            free = gguf_tokenizer.free_token(metadata, taken)
            config |= {"pad_token": None if free is None else tokens[free]}
            files.write_json(folder / "tokenizer_config.json", {k: v for k, v in config.items() if v is not None})
            tokenizer = Tokenizer.load(folder)
        tokenizer.save(folder)
    if system := default_system(tokenizer):
        notes.append(f"without a system text its chat template writes one of its own: {system!r}")
    return tokenizer, notes


def _by_transformers(header: GgufHeader, source: Path) -> dict[str, Any]:
    with interruption.limited(header.path), pretrained.opening(header.path, ADVICE):
        read = AutoTokenizer.from_pretrained(source, gguf_file=INSIDE)
        read.backend_tokenizer.save(str(source / "tokenizer.json"))
    return model_folder.read_object(source / "tokenizer.json")


def default_system(tokenizer: Tokenizer) -> str | None:
    """Return the system text that the chat template writes where a conversation has none; None if it writes none."""
    if not tokenizer.has_chat_template:
        return None
    question = (Message("user", "Qfirst"),)
    try:
        own = tokenizer.text(Prompt(messages=question), None)
        before, _, behind = tokenizer.text(Prompt(messages=question, context="Qsystem"), None).partition("Qsystem")
    except (DataError, PlatformError):
        return None
    if not behind or not own.startswith(before) or not own.endswith(behind) or len(own) < len(before) + len(behind):
        return None
    return own[len(before) : len(own) - len(behind)].strip() or None


@contextlib.contextmanager
def _about(path: Path, folder: Path) -> Iterator[None]:
    """Name the file in errors about what stands in it, also where they name the unfinished `folder`."""
    try:
        yield
    except (PlatformError, DataError) as error:
        said = re.sub(f"^{re.escape(str(folder))}[^:]*", str(path), str(error))
        raise PlatformError(said if said.startswith(str(path)) else f"{path}: {said}; {ADVICE}") from None


# Weights


def _load(header: GgufHeader, source: Path) -> PreTrainedModel:
    """Return the model with its weights in bfloat16; refuse one that the file does not fill exactly."""
    tensors = [tensor for tensor in header.tensors if tensor.name != rotary_stretch.TENSOR]
    stored = sum(tensor.count for tensor in tensors)
    with interruption.limited(header.path), pretrained.opening(header.path, ADVICE):
        config = AutoConfig.from_pretrained(source, gguf_file=INSIDE)
    pretrained.plan(AutoModelForCausalLM, header.path, config, False, stored)
    whole = getattr(transformers, "GgufConfig", None)  # transformers 5.20 and newer can keep blocks packed
    more = {} if whole is None else {"quantization_config": whole(dequantize=True)}
    kind: Any = AutoModelForCausalLM
    with _quiet(), pretrained.opening(header.path, ADVICE):
        model, info = kind.from_pretrained(
            source,
            gguf_file=INSIDE,
            dtype=torch.bfloat16,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **more,
        )
    faulty = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if faulty:
        raise PlatformError(
            f"{header.path}: {len(faulty)} weights are missing or have another shape than its metadata say, "
            f"for example {sorted(faulty)[0]}; {ADVICE}"
        )
    filled = sum(parameter.numel() for parameter in model.parameters())
    if filled != stored:
        raise PlatformError(
            f"{header.path}: holds {stored:,} weights, but the {model.config.model_type} of transformers has "
            f"{filled:,}: it would compute something else; {ADVICE}"
        )
    _stretch(header, model.config)
    for holder, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(holder, name):
            delattr(holder, name)
    return model.eval()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers show no progress, and no warnings to those who would keep blocks packed; what fails raises."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(level)


def _stretch(header: GgufHeader, config: Any) -> None:
    """Write into the configuration how Llama 3.1 and later stretch rotary positions, which transformers leaves out."""
    tensor = next((tensor for tensor in header.tensors if tensor.name == rotary_stretch.TENSOR), None)
    if tensor is None:
        return
    theta = config.rope_parameters["rope_theta"]
    settings = rotary_stretch.recognised(np.concatenate(list(_numbers(header.path, tensor))), theta)
    if settings is None:
        raise PlatformError(f"{header.path}: {tensor.name} stretches rotary positions in no known way; {ADVICE}")
    config.rope_parameters = {"rope_theta": theta, **settings}


def _numbers(path: Path, tensor: GgufTensor) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the numbers of a tensor in fp32, some at a time."""
    package = importlib.import_module("gguf")
    kind = package.GGMLQuantizationType(tensor.kind)
    numbers, length = package.GGML_QUANT_SIZES[kind]
    step = max(1, NUMBERS_AT_ONCE // numbers) * length
    blocks = np.memmap(path, np.uint8, "r", tensor.start, (tensor.length,))
    for start in range(0, tensor.length, step):
        yield package.dequantize(blocks[start : start + step], kind).astype(np.float32).reshape(-1)


def _losses(header: GgufHeader) -> Iterator[str]:
    """Yield what the weights went through: how the file keeps them, and what rounding to bfloat16 adds (measured)."""
    package = importlib.import_module("gguf")
    kinds = Counter(package.GGMLQuantizationType(tensor.kind).name for tensor in header.tensors)
    count, length = (sum(getattr(t, name) for t in header.tensors) for name in ("count", "length"))
    named = ", ".join(f"{kind} in {number} tensors" for kind, number in kinds.most_common())
    lost = "" if kinds.keys() <= {"F32", "F16", "BF16"} else "; what quantisation lost cannot be undone"
    yield f"in the file: {named}; {8 * length / count:.2f} bits a weight{lost}"
    changed = squares = 0.0
    for tensor in header.tensors:
        for exact in map(torch.from_numpy, _numbers(header.path, tensor)):
            changed += float((exact.bfloat16().float() - exact).double().square().sum())
            squares += float(exact.double().square().sum())
    share = math.sqrt(changed / squares) if squares else 0.0
    yield f"rounding to bfloat16 moved them by {share:.2%} (root mean square)" if share else "bfloat16 holds them all"


def _short(setting: Any) -> Any:
    """Return a setting of a configuration with fp32 numbers as their shortest decimals: 1e-05 for 9.99999974e-06."""
    if isinstance(setting, dict):
        return {key: _short(inner) for key, inner in setting.items()}
    return float(str(np.float32(setting))) if isinstance(setting, float) else setting


# Card


def _write_card(header: GgufHeader, folder: Path, facts: list[str]) -> None:
    """Write the README.md: licence and origin as the file tells them, what was lost, and how to load the model."""
    metadata = header.metadata
    base = _origin(metadata)
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["preferent", "gguf"],
        "base_model": base,
        "license": metadata.get("general.license"),
        "license_name": metadata.get("general.license.name"),
        "license_link": metadata.get("general.license.link"),
        "language": metadata.get("general.languages"),
    }
    maker = header.text("general.organization") or header.text("general.author")
    words = [f"Made by {maker}." if maker else "", f"Origin: {base}." if base else ""]
    licence = header.text("general.license")
    words.append(f"Licence, as the file says: {licence}." if licence else "The file names no licence.")
    text = CARD.format(
        name=header.text("general.name") or folder.name,
        file=header.path.name,
        sha256=files.sha256(header.path),
        origin=" ".join(filter(None, words)),
        facts="\n".join(f"- {fact}" for fact in facts),
    )
    known = {key: word for key, word in front.items() if word is not None}
    files.write_atomic(folder / "README.md", model_card.render(text, known, model_card.loading(False, None)))


def _origin(metadata: Mapping[str, Any]) -> str | None:
    """Return the hub's name of the model that the file was made from, if the file tells it."""
    for key in ("general.source.huggingface.repository", "general.source.repo_url", "general.base_model.0.repo_url"):
        place = metadata.get(key)
        if isinstance(place, str) and (match := HUB.fullmatch(place) or re.fullmatch(r"([\w.-]+/[\w.-]+)", place)):
            return match[1]
    return None
