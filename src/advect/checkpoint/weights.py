"""Weight files (safetensors), whole or the local shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from advect.core.errors import UserError
from advect.distributed.parallel import local_range


def load_weights(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file. Raises UserError if it is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); take another checkpoint") from error


def load_part(path: Path, owners: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load a safetensors file; of sharded tensors, this process's rows.

    ``owners`` are parameters by name; a tensor may carry a prefix before the parameter's name.
    """
    with _opened(path) as file:
        part = {}
        for name in file.keys():  # noqa: SIM118
            owner = owners.get(name, owners.get(name.partition(".")[2]))
            rows = None if owner is None else local_range(owner)
            part[name] = file.get_tensor(name) if rows is None else file.get_slice(name)[rows.start : rows.stop]
        return part


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); take another checkpoint") from error


def check_same_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Tensor], source: Path) -> None:
    """Raise UserError naming the first differences between the shapes of a file and of a network."""
    differs = [
        f"{name} is {found[name]} there and {tuple(wanted[name].shape)} here"
        for name in wanted
        if name in found and found[name] != tuple(wanted[name].shape)
    ]
    differs += [f"{name} is only here" for name in wanted if name not in found]
    differs += [f"{name} is only there" for name in found if name not in wanted]
    if differs:
        more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
        raise UserError(
            f"{source} belongs to another network: {'; '.join(differs[:3])}{more}; "
            "use the flags that the run was started with (its config.yaml)"
        )
