"""Progress: nothing for what is quick, lines in a log, a bar in a terminal."""

from __future__ import annotations

import re
import sys

import pytest

from ssetools import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass between two looks at tqdm's clock."""
    now = [0.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_what_is_quick_shows_nothing(capsys, clock):
    with progress.progress(10, "Scoring", "windows") as bar:
        for _ in range(10):
            clock[0] += 0.3
            bar.update()
    assert capsys.readouterr().err == ""


def test_a_log_gets_a_line_every_ten_seconds(capsys, clock):
    with progress.progress(100, "Scoring", "windows") as bar:
        for _ in range(100):
            clock[0] += 1
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert 8 <= len(lines) <= 11
    assert all(re.fullmatch(r"Scoring: \d+ of 100 windows, \d\d:\d\d left", line) for line in lines)


def test_a_terminal_gets_a_bar(capsys, clock, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress(100, "Scoring", "windows") as bar:
        for _ in range(50):
            clock[0] += 1
            bar.update()
    shown = capsys.readouterr().err
    assert "\r" in shown
    assert "Scoring" in shown


def test_processes_beside_the_main_one_show_nothing(capsys, clock):
    with progress.progress(10, "Scoring", "windows", show=False) as bar:
        for _ in range(10):
            clock[0] += 30
            bar.update()
    assert capsys.readouterr().err == ""


def test_a_log_of_nested_bars_has_plain_lines(capsys, clock):
    with progress.progress(3, "Scoring", "genres") as outer:
        for _ in range(3):
            with progress.progress(40, "Reading", "files") as inner:
                for _ in range(40):
                    clock[0] += 1
                    inner.update()
            outer.update()
    lines = capsys.readouterr().err.splitlines()
    assert {line.split(":")[0] for line in lines} == {"Scoring", "Reading"}
    assert all(re.fullmatch(r"(Scoring|Reading): \d+ of \d+ \w+, (\d\d:\d\d|\?) left", line) for line in lines), lines


def test_a_clock_that_is_set_back_stops_nothing(capsys, clock):
    with progress.progress(200, "Scoring", "windows") as bar:
        for number in range(200):
            clock[0] += -3600 if number == 50 else 1
            bar.update()
        assert bar.n == 200
    assert all(line.startswith("Scoring: ") for line in capsys.readouterr().err.splitlines())
