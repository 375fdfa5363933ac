"""Progress lines: what they say, how often, and silence."""

from __future__ import annotations

import io

import pytest

from llpf_fast.cli.output import Progress, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_now_and_then_and_the_last_one_always():
    stream, clock = io.StringIO(), Clock()
    with Progress("tick", upper_bound=True, stream=stream, clock=clock) as progress:
        for tick in range(1, 22):
            progress.update(tick, 2000, f"loss {tick / 100:.2f}")
            clock.now += 0.5
    assert stream.getvalue().splitlines() == [
        "tick 1/2,000  loss 0.01",
        "tick 11/2,000  loss 0.11  2.0 ticks/s  at most 16:34 left",
        "tick 21/2,000  loss 0.21  2.0 ticks/s  at most 16:30 left",
    ]


def test_the_last_line_is_not_said_twice():
    stream, clock = io.StringIO(), Clock()
    with Progress("epoch", stream=stream, clock=clock) as progress:
        progress.update(1, 2)
        clock.now += 20
        progress.update(2, 2)
    assert stream.getvalue().splitlines() == ["epoch 1/2", "epoch 2/2  20.0 s/epoch"]


def test_quiet_says_nothing():
    stream = io.StringIO()
    with Progress("tick", quiet=True, stream=stream) as progress:
        progress.update(1, 2)
        progress.update(2, 2)
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_live_line_with_the_same_words():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream, clock = Terminal(), Clock()
    with Progress("tick", stream=stream, clock=clock) as progress:
        progress.update(1, 4, "loss [0.5]")
        clock.now = 2.0
        progress.update(3, 4, "loss [0.1]")
    assert "tick 3/4  loss [0.1]  1.0 ticks/s  0:01 left" in stream.getvalue()


def test_parts_have_a_rate_of_their_own_and_errors_are_always_said():
    stream, clock = io.StringIO(), Clock()
    with Progress("tick", stream=stream, clock=clock) as progress:
        for part in ("path 1/2 a--b", "path 2/2 a--c"):
            progress.begin(part)
            progress.update(1, 4)
            clock.now += 2.0
            progress.update(2, 4, "loss [0.1]")
        progress.print_line("llpf: error: a--c: [bold]")
    assert stream.getvalue().splitlines() == [
        "path 1/2 a--b: tick 1/4",
        "path 1/2 a--b: tick 2/4  loss [0.1]  2.0 s/tick  0:04 left",
        "path 2/2 a--c: tick 1/4",
        "path 2/2 a--c: tick 2/4  loss [0.1]  2.0 s/tick  0:04 left",
        "llpf: error: a--c: [bold]",
    ]
    stream = io.StringIO()
    with Progress("tick", quiet=True, stream=stream) as progress:
        progress.begin("a")
        progress.update(1, 4)
        progress.print_line("llpf: error: a")
    assert stream.getvalue() == "llpf: error: a\n"


def test_counting_from_the_beginning_again_is_a_part_of_its_own():
    stream, clock = io.StringIO(), Clock()
    with Progress("step", stream=stream, clock=clock) as progress:
        for done, total in ((1, 10), (10, 10), (0, 1000), (100, 1000)):
            progress.update(done, total)
            clock.now += 10.0
    assert stream.getvalue().splitlines()[-1] == "step 100/1,000  10.0 steps/s  1:30 left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (760, "12:40"), (11100, "3:05:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
