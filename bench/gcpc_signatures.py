"""The interface of Google Cloud Pipeline Components 2.22.0, as kfp compiles it: tests/kubeflow/gcpc_2_22_0.json.

python bench/gcpc_signatures.py          # in .venv-kubeflow; writes the file
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "kubeflow"))

from interfaces import gcpc  # noqa: E402

if __name__ == "__main__":
    text = json.dumps(gcpc(), indent=1, sort_keys=True) + "\n"
    (ROOT / "tests/kubeflow/gcpc_2_22_0.json").write_text(text)
