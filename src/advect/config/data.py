"""Data of a run: format, place, and arguments of the format's data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advect.config.section import Section, flag, part, with_flags
from advect.core.errors import UserError
from advect.data.base import Dataset
from advect.data.remote import is_remote


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The data."""

    data_format: str = part("data-format", default="digits", prefix="")
    """Format of --data or --data-dir, if ambiguous; such as sequences for a CSV file."""
    data_dir: str | Path | None = None
    """File or folder; for some formats a URL, a pattern, or a name on the hub."""

    usual = frozenset({"data_dir"})

    def __post_init__(self) -> None:
        """Make paths absolute."""
        super().__post_init__()
        if self.data_dir is None:
            return
        cls, text = self.dataset, str(self.data_dir)
        if cls.place is None:
            raise UserError(f"--data-dir {text} does not go with {self.data_format}, which brings its own data")
        path = Path(text).expanduser().absolute()
        if not cls.remote:
            object.__setattr__(self, "data_dir", path)
        elif not is_remote(text) and (path.exists() or path.suffix in (".tar", ".parquet", ".pq")):
            object.__setattr__(self, "data_dir", str(path))

    @property
    def dataset(self) -> type[Dataset]:
        """Class of the format."""
        return self.part("data_format")

    def values(self) -> dict[str, Any]:
        """All values by name, without data_dir for data that come with a library."""
        found = super().values()
        if self.dataset.place is None:
            del found["data_dir"]
        return found


def data(data_format: str, **options: Any) -> DataConfig:
    """Data of a format, with arguments that differ from the defaults."""
    return DataConfig(data_format=data_format, options=options)


def build_dataset(config: DataConfig) -> Dataset:
    """Open the data. Raises UserError for missing, empty, damaged or unsuitable data."""
    cls, options = config.dataset, config.arguments("data_format")
    if cls.place is not None and config.data_dir is None:
        raise UserError(f"--data-dir is not given; name {cls.place}")
    try:
        return cls.open(*([] if cls.place is None else [config.data_dir]), **options)
    except UserError as error:
        words = with_flags(str(error), cls, {name: flag(name) for name in options})
        first = words.split(" ", 1)[0]
        raise UserError(flag(first) + words[len(first) :] if first in options else words) from error
