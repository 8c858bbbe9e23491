"""Networks. Before a library is imported here, it is kept from fetching compiled code from the hub at run time."""

import importlib
import importlib.util
import logging
import os
import sys

os.environ.setdefault("USE_HUB_KERNELS", "NO")  # read by transformers


def _import_bitsandbytes() -> None:
    """Import bitsandbytes, as PEFT would, if it is installed; without the package `kernels`, by which it fetches."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    kernels = sys.modules.get("kernels")
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = log.level
    sys.modules["kernels"] = None  # type: ignore[assignment]  # an import of it fails
    log.setLevel(logging.ERROR)  # which it would say
    try:
        importlib.import_module("bitsandbytes")
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels


_import_bitsandbytes()
