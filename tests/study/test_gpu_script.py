"""The script for a borrowed GPU: parts arrive in any order, the study stops on time, and results come back."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "study" / "gpu.sh"
STUB = """#!/bin/bash
echo "$@" >> "$STORE/calls"
case "$*" in
  *device_check*) echo "0 checks failed." ;;
  *shared*) ;;
  *study.harm*) mkdir -p "$STORE/results/is"; echo '{}' > "$STORE/results/is/run.json"; exec sleep 61 ;;
esac
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PYTHON", str(tmp_path / "python"))
    monkeypatch.setenv("WORKERS", "2")
    return tmp_path / "store"


def call(*arguments, check=True):
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check, env=os.environ, timeout=50)


def parts(tmp_path):
    """Two parts of an archive, each in a folder of its own with the digests of both."""
    (tmp_path / "content" / "site").mkdir(parents=True)
    (tmp_path / "content" / "site" / "module.py").write_text("x = 1\n" * 1000)
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "content" / "site", "site")
    packed = (tmp_path / "all.tar.gz").read_bytes()
    pieces = {"part-aa": packed[:100], "part-ab": packed[100:]}
    digests = "".join(f"{hashlib.sha256(x).hexdigest()}  {name}\n" for name, x in pieces.items())
    for name, piece in pieces.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(piece)
        (tmp_path / name / "parts.sha256").write_text(digests)
    return [tmp_path / name for name in pieces]


def test_parts_arrive_in_any_order_and_the_study_stops_on_time(store, tmp_path):
    first, second = parts(tmp_path)
    assert "1 of 2 parts are here." in call("receive", second).stdout
    refused = call("run", 1, tmp_path / "out", check=False)
    assert refused.returncode == 1
    assert "Parts are missing" in refused.stderr
    assert "All 2 parts are here." in call("receive", first).stdout
    assert (store / "site" / "module.py").exists()
    for _ in range(2):
        assert "1 runs are in" in call("run", 3, tmp_path / "out", "comparison", "--languages", "is").stdout
        commands = [x.read_bytes() for x in Path("/proc").glob("[0-9]*/cmdline") if x.exists()]
        assert b"sleep\x0061\x00" not in commands  # no worker is left
        assert "0 checks failed." in (tmp_path / "out" / "check.log").read_text()
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        assert "results/is/run.json" in archive.getnames()
    calls = (store / "calls").read_text().splitlines()
    assert sum("device_check" in line for line in calls) == 1  # a second call continues
    assert sum("study.harm comparison --languages is" in line for line in calls) == 4


def test_parts_of_an_earlier_packing_do_not_matter(store, tmp_path):
    (store / "parts").mkdir(parents=True)
    (store / "parts" / "part-ac").write_bytes(b"of an earlier packing")
    for folder in parts(tmp_path):
        output = call("receive", folder).stdout
    assert "All 2 parts are here." in output


def test_missing_arguments_show_the_usage(store):
    for arguments in ([], ["run", 5], ["pack", "folder"], ["receive"]):
        result = call(*arguments, check=False)
        assert result.returncode == 2
        assert "study/gpu.sh run SECONDS OUT" in result.stdout


def test_a_damaged_part_is_not_unpacked(store, tmp_path):
    first, second = parts(tmp_path)
    (second / "part-ab").write_bytes(b"damaged")
    call("receive", first)
    assert "All" not in call("receive", second).stdout
    assert not (store / "site").exists()
