"""The Snakemake workflow: every run of the configuration, in order, and none repeated."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ssetools import cli
from ssetools.report import collect

ROOT = Path(__file__).resolve().parents[2]


def plan(*options):
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE))


@pytest.mark.slow
def test_every_run_is_planned_once_and_finished_steps_are_not(tmp_path):
    folder = tmp_path / "runs" / "gemma-3-270m"
    for name in ("profile.safetensors", "neurons-specific.safetensors", "yo/specific-seed0/adapter.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    study = ["languages=[yo, is]", "methods=[specific, full]", "seeds=[0, 1]", f"runs={tmp_path}/runs"]
    jobs = {name: int(count) for name, count in plan("--config", *study).items()}
    assert set(jobs) & {"profile", "select"} == set()
    expected = {"finetune": 7, "evaluate": 8, "notebook": 2, "collect": 1}
    assert {name: jobs[name] for name in expected} == expected


STUB = """#!{python}
import os, pathlib, sys, time
words = sys.argv[1:]
name = pathlib.Path(sys.argv[0]).name
after = lambda option: words[words.index(option) + 1]
with open("commands.log", "a") as log:
    log.write(" ".join([name, *words]) + chr(10))
if name == "papermill":
    output = words[2]
elif words[0] == "collect":
    output = words[1]
else:
    output = pathlib.Path(after("--runs")) / after("--model").replace("/", "--")
    if words[0] in ("profile", "select"):
        output /= dict(profile="profile.safetensors", select="neurons-specific.safetensors")[words[0]]
    else:
        file = dict(finetune="adapter.json", evaluate="metrics.json")[words[0]]
        output = output / words[1] / (after("--method") + "-seed" + after("--seed")) / file
while words[:2] == ["finetune", "is"] and os.path.exists("hang"):
    time.sleep(0.1)
output = pathlib.Path(output)
output.parent.mkdir(parents=True, exist_ok=True)
output.write_text("done")
"""


@pytest.mark.slow
def test_a_killed_workflow_is_resumed_without_repeating_finished_steps(tmp_path):
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    for name in ("ssetools", "papermill"):
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(STUB.format(python=sys.executable))
        stub.chmod(0o755)
    study = ["models=[me/one, two]", "languages=[yo, is]", "methods=[specific, full]", "seeds=[0]"]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", *study]
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    options = {"cwd": tmp_path, "env": {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}}
    (tmp_path / "hang").touch()
    log = tmp_path / "commands.log"
    with open(tmp_path / "first.log", "w") as out:
        first = subprocess.Popen(command, start_new_session=True, stdout=out, stderr=out, **options)
    for _ in range(1200):
        if first.poll() is not None or (log.exists() and "finetune is" in log.read_text()):
            break
        time.sleep(0.1)
    assert first.poll() is None, (tmp_path / "first.log").read_text()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (tmp_path / "hang").unlink()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    counts = Counter(log.read_text().splitlines())
    expected = {"profile": 2, "select": 2, "finetune": 8, "evaluate": 8, "collect": 1}
    assert Counter(line.split()[1] for line in counts if line.startswith("ssetools")) == expected
    assert sum(line.startswith("papermill") for line in counts) == 4
    twice = [line for line, count in counts.items() if count > 1]
    assert len(twice) == 1
    assert twice[0].startswith("ssetools finetune is"), "only the interrupted step is repeated"


def test_runs_are_collected_into_one_table(tmp_path, capsys):
    moved = {"percent": -3.0, "low": -4.0, "high": None}
    metrics = {
        "adapter": {"base": {"model": "m"}, "language": "yo", "method": "lape", "seed": 0},
        "same_kind": ["articles"],
        "summary": {"articles": {"target": moved, "others": {"is": moved}}},
    }
    for seed in (0, 1):
        path = tmp_path / "runs" / "m" / "yo" / f"lape-seed{seed}" / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(metrics))
    assert collect(tmp_path / "runs", tmp_path / "study.csv") == 2
    lines = (tmp_path / "study.csv").read_text().splitlines()
    assert lines[1] == "m,yo,lape,0,articles,True,yo,-3.0,-4.0,"
    assert len(lines) == 1 + 4
    assert cli.main(["collect", "x.csv", "--runs", str(tmp_path / "none")]) == 2
    assert "run `ssetools evaluate` first" in capsys.readouterr().err
