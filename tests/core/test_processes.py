"""Two processes do what one does: the same counts exactly, the same losses and weights to rounding; whole or sharded."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import families
import pytest
import torch
import two_processes

from ssetools import cli
from ssetools.models import shard_model
from ssetools.training.methods import WholeWeights

JOBS = {
    "whole": {},
    "shards": {"sharded": True},
    "shards of a tied model, recomputed activations": {"family": "gemma3", "recompute": True, "sharded": True},
    "shards with IA3": {"method": "ia3", "sharded": True},
    "shards of a bfloat16 base": {"dtype": "bfloat16", "sharded": True},
}


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Returns what two processes with half the batch each found, job by job, and the folder that they left."""
    folder = tmp_path_factory.mktemp("two")
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(_free_port())]
    done = subprocess.run(
        [*run, Path(two_processes.__file__), folder, json.dumps(JOBS)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,  # processes that wait for each other wait for ever
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "found.pt"), folder


@pytest.mark.parametrize("job", list(JOBS))
def test_two_processes_equal_one_with_twice_the_batch(two, tmp_path, job):
    one = two_processes.work(tmp_path, batch_size=4, **{**JOBS[job], "sharded": False})
    two = two[0][job]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert torch.equal(one["tokens"], two["tokens"])
    assert all(p.dtype == torch.float32 for p in two["numbers"])
    if "bfloat16" in job:  # whose rounding depends on how much is computed at once
        torch.testing.assert_close(one["losses"], two["losses"], rtol=0.02, atol=0.01)
        return
    assert torch.equal(one["counts"], two["counts"])
    torch.testing.assert_close(one["losses"], two["losses"], rtol=1e-5, atol=1e-6)
    assert two["validation"] == pytest.approx(one["validation"], rel=1e-5)
    for mine, theirs in zip(one["numbers"], two["numbers"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_files_are_written_once_and_nothing_is_left_over(two):
    found, folder = two
    assert {p.name for p in folder.iterdir()} == {*JOBS, "found.pt"}
    for job in JOBS:
        assert {p.name for p in (folder / job).iterdir()} == {"profile.safetensors", "run"}
        files = {p.name for p in (folder / job / "run").iterdir()}
        assert files >= {"adapter.json", "log.csv"}
        assert not [name for name in files if "checkpoint" in name]
        lines = (folder / job / "run" / "log.csv").read_text().splitlines()
        assert len(lines) == 1 + len(found[job]["losses"])


@pytest.mark.parametrize("job", [name for name in JOBS if "shards" in name])
def test_each_process_holds_half_of_a_sharded_base(two, job):
    found = two[0][job]
    assert found["held"] == pytest.approx([found["weights"] / 2] * 2, rel=0.05), "before and after"


def test_what_cannot_be_sharded_is_refused(capsys, monkeypatch):
    assert cli.main(["finetune", "yo", "--shard"]) == 2
    assert (
        "A quantised base cannot be sharded, since FSDP gathers weights without their scales" in capsys.readouterr().err
    )
    assert cli.main(["profile", "--shard", "--16-bit"]) == 2
    assert "there is one: start the command with" in capsys.readouterr().err
    with pytest.raises(ValueError, match="quantised base cannot"):
        shard_model(families.tiny_model("llama", load_in_8bit=True))
    model = families.tiny_model("llama")
    model.ssetools_sharded = True
    with pytest.raises(ValueError, match="'ffn' trains the weights themselves, and those of a sharded model"):
        WholeWeights(model, only_ffn=True)


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_do_not_spin_unless_asked_to(given, expected):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | (
        {"OMP_WAIT_POLICY": given} if given else {}
    )
    code = "import os, sys, ssetools; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == expected
