"""Fingerprints that are known without reading a byte, so that a run that finds everything done hashes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from preferent import files
from preferent.errors import DataError
from preferent.runs import stages

Inputs = Mapping[str, Path | None]
"""Files and folders by the names that a stage gives them; None: not there."""


@dataclass
class Digests:
    """The fingerprint of files and folders by their stamp (`run.stamp`), kept in the run directory.

    It is believed only of stages that are done: what a stage computes with is hashed by the stage itself.
    """

    path: Path
    known: dict[str, str]
    written: int

    @classmethod
    def read(cls, root: Path) -> "Digests":
        """Return the table of a run directory; an empty one where there is none, or it is damaged."""
        path = root / ".digests.json"
        try:
            known = dict(files.read_sealed(path)["digests"])
        except (OSError, DataError, KeyError):
            known = {}
        return cls(path, known, len(known))

    def write(self) -> None:
        """Write the table if it grew."""
        if len(self.known) > self.written:
            files.write_sealed(self.path, {"schema": 1, "digests": self.known})
            self.written = len(self.known)

    def of(self, path: Path | None) -> str | None:
        """Return the fingerprint of a file or folder, read only where its stamp is new; None where it is not there."""
        if path is None or not path.exists():
            return None
        stamp = files.stamp(path)
        if stamp is None:
            return files.fingerprint(path)
        if stamp not in self.known:
            self.known[stamp] = files.fingerprint(path)
        return self.known[stamp]

    def stamps(self, inputs: Inputs) -> dict[str, str]:
        """Return the stamps of those inputs that have one."""
        stamps = {name: files.stamp(path) for name, path in inputs.items() if path is not None}
        return {name: stamp for name, stamp in stamps.items() if stamp is not None}

    def learn(self, before: Mapping[str, str], inputs: Inputs, folder: Path) -> None:
        """Take over what the stage in `folder`, which has just ended, hashed: of inputs whose stamps are still those
        `before` it began."""
        hashed, after = stages.read_stage(folder)["inputs"], self.stamps(inputs)
        self.known |= {
            stamp: hashed[name] for name, stamp in before.items() if name in hashed and after.get(name) == stamp
        }
        self.write()
