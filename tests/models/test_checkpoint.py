"""Checkpoints are found whole or passed over."""

from pathlib import Path

import pytest
import torch

from preferent import files
from preferent.errors import UsageError
from preferent.models import checkpoint
from preferent.runs.checkpoints import step_folders


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), value), "b": torch.tensor(7, dtype=torch.int64)}


def test_round_trip_and_keep(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, tensors(step), {"kl_coeff": 0.1 * step}, keep=2)
    assert step_folders.steps(tmp_path) == [2, 3]
    saved = checkpoint.latest(tmp_path)
    assert saved is not None and saved.step == 3 and saved.scalars == {"kl_coeff": 0.1 * 3}
    assert torch.equal(saved.tensors["a"], tensors(3)["a"]) and saved.tensors["b"].dtype == torch.int64


def test_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 24)
    checkpoint.save(tmp_path, 1, {str(i): torch.full((4,), float(i)) for i in range(5)}, {}, keep=1)
    assert len(list((tmp_path / "step-000001").glob("*.safetensors"))) == 5
    saved = checkpoint.latest(tmp_path)
    assert saved is not None and [saved.tensors[str(i)][0].item() for i in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest"])
def test_damage_is_found_and_the_one_before_used(tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {}, keep=2)
    checkpoint.save(tmp_path, 2, tensors(2), {}, keep=2)
    file = tmp_path / "step-000002" / ("manifest.json" if harm == "manifest" else "00000.safetensors")
    data = bytearray(file.read_bytes())
    if harm == "remove":
        file.unlink()
    elif harm == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2])
    saved = checkpoint.latest(tmp_path)
    assert saved is not None and saved.step == 1
    assert "step-000002" in capsys.readouterr().err


def test_half_written_ones_are_ignored_and_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".step-000009.tmp-123").mkdir()
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, 1, tensors(1), {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_unknown_schema_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {}, keep=1)
    path = tmp_path / "step-000001" / "manifest.json"
    files.write_sealed(path, files.read_sealed(path) | {"schema": 99})
    with pytest.raises(UsageError, match="schema 99"):
        checkpoint.latest(tmp_path)
