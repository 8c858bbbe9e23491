"""A library imported here is first kept from fetching code from the hub, and from loading a compiler."""

import importlib
import importlib.util
import logging
import os
import sys
from typing import Any

import torch

os.environ.setdefault("USE_HUB_KERNELS", "NO")  # read by transformers


def _uncompiled(function: Any = None, **_: Any) -> Any:
    """Return a function as it is, in place of `torch.compile`, also as a decorator with options."""
    return function or _uncompiled


def _import_bitsandbytes() -> None:
    """Import bitsandbytes, as PEFT would, if it is installed; without the package `kernels`, by which it fetches.

    It also gives `torch.compile` four functions for devices without kernels of its own, and that alone loads torch's
    compiler, 1.5 s of processor time in each command: they stay as they are.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    compiler = torch.compile
    kernels = sys.modules.get("kernels")
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = log.level
    sys.modules["kernels"] = None  # type: ignore[assignment]  # an import of it fails
    log.setLevel(logging.ERROR)  # which it would say
    torch.compile = _uncompiled  # type: ignore[assignment]
    try:
        importlib.import_module("bitsandbytes")
    finally:
        torch.compile = compiler
        log.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels


_import_bitsandbytes()
