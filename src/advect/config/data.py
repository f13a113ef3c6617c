"""The data of a run: their format, their place, and the arguments of that format's data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advect.config.section import Section, flag, part
from advect.core.errors import UserError
from advect.data.base import Dataset
from advect.data.remote import is_remote


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The data."""

    data_format: str = part("data-format", default="digits", prefix="")
    """How --data or --data-dir is read, where it could be read in more than one way; sequences, say, of a CSV file."""
    data_dir: str | Path | None = None
    """The data: a file or a folder; of some formats a URL, a pattern, or a name on the hub."""

    usual = frozenset({"data_dir"})

    def __post_init__(self) -> None:
        """Keep a path as an absolute one, so that a run works from any folder."""
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
        """The class of the format."""
        return self.part("data_format")

    def values(self) -> dict[str, Any]:
        """All values by name; no place for data that come with a library."""
        found = super().values()
        if self.dataset.place is None:
            del found["data_dir"]
        return found


def data(data_format: str, **options: Any) -> DataConfig:
    """The data of a format with those arguments that are not the default."""
    return DataConfig(data_format=data_format, options=options)


def build_dataset(config: DataConfig) -> Dataset:
    """Open the data. Raises UserError for data that are missing, empty or damaged, or do not fit their flags."""
    cls, options = config.dataset, config.arguments("data_format")
    if cls.place is not None and config.data_dir is None:
        raise UserError(f"--data-dir is not given; name {cls.place}")
    try:
        return cls.open(*([] if cls.place is None else [config.data_dir]), **options)
    except UserError as error:
        words = str(error)
        for name in options:
            words = words.replace(f"{cls.__name__}.{name}", flag(name))
        first = words.split(" ", 1)[0]
        raise UserError(flag(first) + words[len(first) :] if first in options else words) from error
