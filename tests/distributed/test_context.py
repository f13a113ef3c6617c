"""What the jobs of one command share: messages and the context."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from advect.core.errors import UserError
from advect.distributed import context
from advect.distributed.context import EVERY_RANK, log_to_console, only_warnings, pick_device, run_context
from advect.distributed.env import DistEnv

LOGGER = logging.getLogger("advect.somewhere")


def test_notes_go_to_standard_output_and_warnings_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_console()
    log_to_console()  # once is enough
    LOGGER.info("note: a")
    LOGGER.warning("b")
    with only_warnings():
        LOGGER.info("c")
        LOGGER.warning("d")
    LOGGER.debug("e")
    assert capsys.readouterr() == ("note: a\n", "warning: b\nwarning: d\n")


def test_only_the_first_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log_to_console()
    second = DistEnv(rank=1, world=2, address="localhost", port=1234)
    monkeypatch.setattr(context, "current", lambda: second)
    LOGGER.info("note: a")
    LOGGER.warning("b")
    LOGGER.warning("c", extra=EVERY_RANK)
    assert capsys.readouterr() == ("", "warning: c\n")


def test_a_context_has_the_device_asked_for(tmp_path: Path) -> None:
    with run_context("cpu", run_dir=tmp_path, seed=3) as run:
        assert (run.device, run.env.is_first, run.run_dir, run.seed) == (torch.device("cpu"), True, tmp_path, 3)
        assert pick_device(run.device) == run.device
    with pytest.raises(UserError, match="--device abacus cannot be used here; cpu always can"), run_context("abacus"):
        pass
