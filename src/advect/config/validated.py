"""Data sections whose place is a path or an address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advect.config.section import Section


@dataclass(frozen=True, kw_only=True)
class InFolder(Section):
    """A section with a ``data_dir``, which is kept as an absolute path, so that a run works from any folder."""

    data_dir: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is not None:
            object.__setattr__(self, "data_dir", self.data_dir.expanduser().absolute())


@dataclass(frozen=True, kw_only=True)
class AtAddress(Section):
    """A section whose ``data_dir`` may be a URL, a pattern or a name as well: a path is kept as an absolute one."""

    data_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is not None and "://" not in self.data_dir and "::" not in self.data_dir:
            path = Path(self.data_dir).expanduser().absolute()
            if path.exists() or path.suffix in (".tar", ".parquet", ".pq"):
                object.__setattr__(self, "data_dir", str(path))
