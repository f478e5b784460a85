"""The study as a workflow: every run of the configuration, in order, and nothing twice."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssetools import cli
from ssetools.report import collect

ROOT = Path(__file__).resolve().parent.parent


def plan(*options):
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE))


@pytest.mark.slow
def test_the_study_plans_every_run_once_and_nothing_that_is_there(tmp_path):
    folder = tmp_path / "runs" / "gemma-3-270m"
    for name in ("profile.safetensors", "neurons.safetensors", "yo/lape-seed0/adapter.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    study = ["languages=[yo, is]", "methods=[lape, full]", "seeds=[0, 1]", f"runs={tmp_path}/runs"]
    jobs = {name: int(count) for name, count in plan("--config", *study).items()}
    assert set(jobs) & {"profile", "select"} == set()
    expected = {"finetune": 7, "evaluate": 8, "notebook": 2, "collect": 1}
    assert {name: jobs[name] for name in expected} == expected


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
