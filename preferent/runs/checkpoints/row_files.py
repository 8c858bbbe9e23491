"""Files of safetensors that several processes write together, each some rows of every tensor in their place.

The file is one that a single process could write: 8 bytes of length, a header in JSON, and the tensors, one behind the
other, each row by row.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preferent import files

BYTES = 4
"""Bytes of a number: all are fp32."""


@dataclass(frozen=True)
class RowFile:
    """A file of fp32 tensors: its header, and where in the file each tensor begins; `size` is that of the file."""

    path: Path
    header: bytes
    starts: Mapping[str, int]
    size: int

    @classmethod
    def of(cls, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> "RowFile":
        """Return the layout of a file of tensors of these shapes, in this order."""
        described, ends = {}, [0]
        for name, shape in shapes.items():
            ends.append(ends[-1] + math.prod(shape) * BYTES)
            described[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": ends[-2:]}
        text = json.dumps(described).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        starts = {name: len(header) + end for name, end in zip(shapes, ends[:-1], strict=True)}
        return cls(path, header, starts, len(header) + ends[-1])

    def create(self) -> None:
        """Write the header, and make room for all rows."""
        with open(self.path, "wb") as file:
            file.write(self.header)
            file.truncate(self.size)
        files.share(self.path)

    def write(self, rows: Mapping[str, tuple[int, np.ndarray]]) -> None:
        """Write the rows of tensors that a process holds, each behind so many elements of its tensor."""
        with open(self.path, "r+b") as file:
            for name, (before, elements) in rows.items():
                file.seek(self.starts[name] + before * BYTES)
                file.write(np.ascontiguousarray(elements, np.float32).reshape(-1).data)
            file.flush()
            os.fsync(file.fileno())
