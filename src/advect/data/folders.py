"""The folder that a user names, checked before anything is read from it."""

from __future__ import annotations

import os
from pathlib import Path

from advect.core.errors import UserError


def require_folder(data_dir: str | os.PathLike[str] | None, *, holding: str) -> Path:
    """``data_dir`` as a path to an existing folder.

    Args:
        data_dir: what the user gave; "~" is the home folder.
        holding: what the folder should hold, for the message.

    Raises:
        UserError: nothing was given, or it does not exist, or it is not a folder.
    """
    if data_dir is None or not str(data_dir):
        raise UserError(f"data_dir is not given; name the folder that holds {holding}")
    folder = Path(data_dir).expanduser()
    if not folder.exists():
        raise UserError(f"data_dir {str(data_dir)!r} does not exist; name the folder that holds {holding}")
    if not folder.is_dir():
        raise UserError(f"data_dir {str(data_dir)!r} is a file, not a folder; name the folder that holds {holding}")
    return folder
