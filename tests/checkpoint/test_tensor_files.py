"""The one writer of weights: what is read is what was given, whatever its strides, memory and device."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from advect.checkpoint.tensor_files import load_part, load_weights, read_shapes, save_tensors
from advect.core.errors import UserError
from faults.disk import FaultyDisk

WHOLE = torch.arange(24.0).reshape(2, 3, 4)
SHARED = torch.arange(6.0)


@pytest.mark.parametrize(
    "tensors",
    [
        {"transposed": WHOLE.permute(2, 0, 1)},
        {"channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)},
        {"every other": WHOLE[:, ::2], "expanded": torch.ones(1, 3).expand(4, 3)},
        {"tied": SHARED, "to": SHARED, "view": SHARED.reshape(2, 3), "part": SHARED[2:4], "strided part": SHARED[::2]},
        {"none": torch.empty(0, 3), "none too": torch.empty(0), "scalar": torch.tensor(2.5)},
        {
            "needs a gradient": torch.nn.Parameter(WHOLE.clone()),
            "half": WHOLE.bfloat16(),
            "integers": WHOLE.long(),
        },
    ],
    ids=lambda tensors: ", ".join(tensors),
)
def test_any_tensors_come_back_equal(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "a.safetensors"
    save_tensors(file, tensors, {"advect": "{}"})
    back = load_weights(file)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value), name
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"advect": "{}"}


def test_a_full_disk_is_an_error_of_the_file_system_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with FaultyDisk(tmp_path, errno.ENOSPC, 1), pytest.raises(OSError) as caught:
        save_tensors(file, {"x": WHOLE})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(file))


@pytest.mark.parametrize("read", [load_weights, read_shapes, lambda file: load_part(file, {})])
def test_a_file_that_is_gone_or_none_is_told(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """safetensors raises RuntimeError of a file that is removed between two calls, as beside a living run."""
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("gone", "text"):
        with pytest.raises(UserError, match=rf"{name}\.safetensors is not a whole safetensors file"):
            read(tmp_path / f"{name}.safetensors")


def test_the_same_content_makes_the_same_bytes(tmp_path: Path) -> None:
    header = {name: f'{name}\u00e9\n\x1f\x7f"/' for name in "qwertyuiop"}
    tensors = {"b": torch.arange(6.0), "a": torch.zeros(2, 3, dtype=torch.int8)}
    for i in range(4):
        save_tensors(tmp_path / str(i), tensors, header)
    assert len({(tmp_path / str(i)).read_bytes() for i in range(4)}) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == header and list(file.get_tensor("b")) == [0, 1, 2, 3, 4, 5]


def test_who_may_read_a_file_is_as_for_all_files_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "text").stat().st_mode
