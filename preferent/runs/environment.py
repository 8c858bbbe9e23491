"""What this computer is and what is installed on it: for bug reports. It looks without importing torch."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preferent.runs import stages

if TYPE_CHECKING:
    from preferent.config.recipe import Recipe

PACKAGES = ("scipy", "pydantic", "httpx2", "datasets", "pyarrow")
"""Packages that matter besides those of which a run records the version."""
NVIDIA = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits")
BY_ONE = ("data", "report")
"""The stages that compute nothing that several processes could share."""
BF16_FROM = 8.0
"""The CUDA compute capability from which a GPU multiplies bfloat16."""


def describe() -> dict[str, Any]:
    """Versions, platform, processor, memory, GPUs and threads, as plain values; no paths, no names, no secrets."""
    versions = {name: version for name, version in stages.versions().items() if name != "machine"}
    return {
        "versions": versions | _installed(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": usable_cores(),
        "thread_settings": {k: os.environ[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ},
        "memory_gib": round(memory() / 2**30, 1),
        "bf16_on_cpu": cpu_has_bf16(),
        "torch_built_for": _torch_build(),
        "gpus": _gpus(),
    }


def render(facts: dict[str, Any]) -> str:
    """Render the facts of `describe`, one per line."""
    rows = [(name, version) for name, version in facts["versions"].items()]
    settings = "".join(f", {name}={value}" for name, value in facts["thread_settings"].items())
    rows += [
        ("platform", facts["platform"]),
        ("processor", f"{facts['processor']}, {facts['cores']} cores"),
        ("threads", f"{facts['threads']} usable{settings}"),
        ("memory", f"{facts['memory_gib']} GiB"),
        ("bf16 on CPU", "native" if facts["bf16_on_cpu"] else "no: precision auto means fp32"),
        ("torch is for", facts["torch_built_for"]),
    ]
    for gpu in facts["gpus"]:
        bf16 = "bf16" if gpu["bf16"] else "no bf16"
        rows.append(("GPU", f"{gpu['name']}, {gpu['memory_gib']} GiB, {bf16}, driver {gpu['driver']}"))
    if not facts["gpus"]:
        rows.append(("GPU", "none"))
    return "\n".join(f"{name:<13} {value}" for name, value in rows)


def usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of main memory; what a container allows where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(path).read_text()))
    return total


def processes(recipe: "Recipe", stage: str) -> int:
    """Return the number of processes that do a stage of a recipe here."""
    if stage in BY_ONE:
        return 1
    if recipe.processes != "auto":
        return recipe.processes
    return max(1, len(_gpus())) if recipe.device in ("auto", "cuda") else 1


def has_gpu() -> bool:
    """Return whether the driver lists a GPU."""
    return bool(_gpus())


def device(name: str) -> tuple[str, int]:
    """Return what `device` of a recipe means here, and the total bytes of its memory."""
    gpus = [] if name == "cpu" else _gpus()
    if gpus:
        return gpus[0]["name"], round(gpus[0]["memory_gib"] * 2**30)
    return "this machine", memory()


def cpu_has_bf16() -> bool:
    """Return whether the processor multiplies bfloat16 natively (AVX512-BF16, AMX); False where Linux does not say."""
    with suppress(OSError):
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        return flags is not None and bool({"avx512_bf16", "amx_tile"} & set(flags[1].split()))
    return False


def _processor() -> str:
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def _installed() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _torch_build() -> str:
    """Return the accelerator that the installed torch was built for, read from its version file."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "torch is not installed"
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    for name, title in (("cuda", "CUDA"), ("hip", "ROCm")):
        if built := re.search(rf"^{name}\b[^=]*=\s*'([^']+)'", text, re.M):
            return f"{title} {built[1]}"
    return "CPU"


def _gpus() -> list[dict[str, Any]]:
    """NVIDIA's GPUs as the driver lists them; none where there is no driver or it does not answer."""
    try:
        done = subprocess.run(NVIDIA, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [_gpu(line) for line in done.stdout.splitlines() if done.returncode == 0 and line.count(",") == 3]


def _gpu(line: str) -> dict[str, Any]:
    """Parse one line of nvidia-smi: name, MiB, compute capability, driver; an unknown number becomes 0."""
    name, mebibytes, capability, driver = (word.strip() for word in line.split(","))
    numbers = [float(word) if re.fullmatch(r"[\d.]+", word) else 0.0 for word in (mebibytes, capability)]
    return {
        "name": name,
        "memory_gib": round(numbers[0] / 1024, 1),
        "bf16": numbers[1] >= BF16_FROM,
        "driver": driver,
    }
