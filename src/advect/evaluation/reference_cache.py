"""What is computed of reference data once and used by every evaluation: features, moments, radii."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from advect.core.errors import UserError
from advect.core.files import make_folder, write_whole

Key = Mapping[str, str | int]


class ReferenceCache:
    """Tensors by what they were computed of, one .safetensors file a key in one folder.

    A key says all that the tensors depend on: the data's fingerprint, the split, how many rows and which, the
    features' identity, and what was computed. A file appears whole or not at all and carries its key; one that is
    damaged or of another key counts as missing and is replaced. So a cache never changes a number, and may be deleted
    any time.

    Args:
        folder: made where it is missing.

    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(Path(folder), "cache folder")

    def path(self, key: Key) -> Path:
        """The file of a key, which need not be there. Raises UserError for an empty key and an empty value."""
        if not key or not all(str(value) for value in key.values()):
            raise UserError(f"the key of cached tensors must say what they were computed of, got {dict(key)}")
        return self.folder / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:32]}.safetensors"

    def load(self, key: Key) -> dict[str, Tensor] | None:
        """The tensors of a key by name, on the CPU; None where there are none."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != _text(key):
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (OSError, SafetensorError):
            return None

    def keep(self, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of a key in one step."""
        whole = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        write_whole(self.path(key), lambda partial: save_file(whole, partial, metadata={"key": _text(key)}))

    def get(self, key: Key, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a key, computed by ``make`` and kept where there are none."""
        found = self.load(key)
        if found is None:
            found = dict(make())
            self.keep(key, found)
        return found


def _text(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)
