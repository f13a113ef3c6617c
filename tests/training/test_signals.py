from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from advect.distributed.env import STOPPING
from advect.training.guards import StopSignals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@pytest.fixture(autouse=True)
def usual_signals():
    """Whatever the tests run under: nohup ignores SIGHUP, and so does what it starts."""
    before = {n: signal.signal(n, signal.SIG_DFL) for n in STOPPING if n != signal.SIGINT}
    yield
    for n, handler in before.items():
        signal.signal(n, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_noted_and_the_second_interrupts(number):
    before = [signal.getsignal(n) for n in STOPPING]
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number.name
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(n) for n in STOPPING] == before


def test_a_signal_from_outside_is_noted():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        until = time.monotonic() + 10
        while signals.received is None and time.monotonic() < until:
            time.sleep(0.001)
    assert signals.received == "SIGUSR1"


def test_another_thread_changes_no_handler():
    before, seen = [signal.getsignal(n) for n in STOPPING], []

    def inside():
        with StopSignals():
            seen.extend(signal.getsignal(n) for n in STOPPING)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == before
