from __future__ import annotations

import os
import signal
import threading

import pytest

from resgrow.experiments.interrupts import Interrupted, Interrupts


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_becomes_an_exception_with_the_shell_s_exit_code(signum, code):
    with Interrupts().caught(), pytest.raises(Interrupted) as caught:
        os.kill(os.getpid(), signum)
    assert caught.value.exit_code == code


def test_a_held_signal_waits_for_the_end_of_the_block():
    interrupts = Interrupts()
    reached = []

    def work():
        with interrupts.held():
            with interrupts.held():
                os.kill(os.getpid(), signal.SIGTERM)
            reached.append("end of the outer block")
        reached.append("beyond the block")

    with interrupts.caught(), pytest.raises(Interrupted):
        work()
    assert reached == ["end of the outer block"]


def test_a_second_signal_does_not_disturb_the_winding_up():
    interrupts = Interrupts()
    reached = []
    with interrupts.caught():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("wound up")
    assert reached == ["wound up"]


def test_an_error_in_a_held_block_is_not_replaced_by_the_signal():
    interrupts = Interrupts()

    def work():
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGINT)
            raise OSError("disk")

    with interrupts.caught(), pytest.raises(OSError, match="disk"):
        work()


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts().caught():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_works_in_a_thread_without_handlers():
    entered = []

    def body():
        with Interrupts().caught():
            entered.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert entered == [True]
