"""A process that is told to stop ends by one exit code: at once, at the next good place, or when the grace is over."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from visual_r1 import preemption
from visual_r1.preemption import EXIT_CODE, SIGNALS

BEGIN = """
import hashlib, subprocess, sys, time
from visual_r1 import preemption
def say(word): print(word, flush=True)
preemption.arm()
try:
"""
END = """
except BaseException as error:
    say(type(error).__name__)
    raise
"""


def start(body):
    """A program whose body, indented once, says when it is ready."""
    program = BEGIN + body + END
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def end(process):
    out, errors = process.communicate(timeout=300)
    return process.returncode, out.split(), errors


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_not_training_ends_at_once_and_in_order(number):
    process = start("    say('ready'); time.sleep(600)")
    process.send_signal(number)
    code, said, errors = end(process)
    assert (code, said) == (EXIT_CODE, ["PreemptedError"]) == (75, ["PreemptedError"])
    assert errors == f"stopped by {number.name}: the same command goes on\n"


def test_an_object_that_is_taken_apart_does_not_swallow_the_notice():
    """Python prints what is raised there, and goes on."""
    body = """
    class Slow:
        def __del__(self):
            say('ready')
            time.sleep(1)
            say('gone')
    one = Slow()
    del one
    time.sleep(600)
"""
    process = start(body)
    process.send_signal(signal.SIGTERM)
    code, said, errors = end(process)
    assert (code, said) == (EXIT_CODE, ["gone", "PreemptedError"])
    assert errors == "stopped by SIGTERM: the same command goes on\n"


def test_a_library_that_swallows_it_delays_the_end_by_seconds():
    body = """
    preemption._ORDERLY_SECONDS = 0.3
    try:
        say('ready')
        time.sleep(600)
    except BaseException:
        say('swallowed')
    time.sleep(600)
"""
    process = start(body)
    process.send_signal(signal.SIGTERM)
    assert end(process)[:2] == (EXIT_CODE, ["swallowed"])


WAITING = """
    with preemption.deferred(grace_seconds={grace}):
        say('ready')
        while not preemption.is_announced(): time.sleep(0.01)
        say(preemption.announced_by())
        {then}
        say('saved')
"""


def test_a_training_ends_its_step_first():
    process = start(WAITING.format(grace=None, then="time.sleep(0.1)"))
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGUSR1)  # the same notice, from a scheduler that signals all processes of a group
    assert end(process) == (EXIT_CODE, ["SIGUSR1", "saved", "PreemptedError"], "")


def test_past_the_grace_it_ends_without_saving():
    process = start(WAITING.format(grace=0.2, then="time.sleep(600)"))
    process.send_signal(signal.SIGTERM)
    code, said, errors = end(process)
    assert (code, said) == (EXIT_CODE, ["SIGTERM"])
    assert errors == (
        "\nthe step did not end within 0.2 seconds of the signal: stopped without saving; the same command goes on "
        "from the last checkpoint (exit code 75)\n"
    )


def test_the_grace_counts_where_no_handler_runs():
    """Deep in a library the interpreter gets no turn for minutes."""
    body = """
    with preemption.deferred(grace_seconds=0.2):
        say('ready')
        hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
"""
    process = start(body)
    process.send_signal(signal.SIGTERM)
    assert end(process)[:2] == (EXIT_CODE, [])


def test_a_second_notice_ends_it_at_once():
    process = start(WAITING.format(grace=None, then="time.sleep(600)"))
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "SIGUSR1\n"
    time.sleep(preemption.ONE_NOTICE_SECONDS + 0.1)
    process.send_signal(signal.SIGTERM)
    code, said, errors = end(process)
    assert (code, said) == (EXIT_CODE, [])
    assert errors.startswith("\nstopped at once by a second signal, SIGTERM; the same command goes on")


def test_a_notice_that_nobody_asked_about_counts_when_the_block_ends():
    body = """
    with preemption.deferred(grace_seconds=None):
        say('ready')
        time.sleep(0.5)
    say('never')
"""
    process = start(body)
    process.send_signal(signal.SIGTERM)
    assert end(process)[:2] == (EXIT_CODE, ["PreemptedError"])


def test_a_launcher_hands_the_notice_on_and_waits():
    body = """
    child = subprocess.Popen([sys.executable, '-c', '''
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: (print("child", flush=True), sys.exit(7)))
print("ready", flush=True)
time.sleep(600)
'''])
    with preemption.passed_on(lambda: [child.pid]):
        code = child.wait()
    say(code), say(preemption.is_announced())
"""
    process = start(body)
    process.send_signal(signal.SIGUSR1)
    assert end(process) == (0, ["child", "7", "True"], "")


def test_a_launcher_that_has_started_nothing_ends_itself():
    body = """
    with preemption.passed_on(list):
        say('ready')
        time.sleep(600)
"""
    process = start(body)
    process.send_signal(signal.SIGTERM)
    assert end(process)[:2] == (EXIT_CODE, ["PreemptedError"])
