"""Two processes do what one does: the same counts exactly, the same losses and weights to rounding."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns the folder and the results of two processes with half the batch each."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(two_processes.__file__)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(_free_port()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, script, folder, "2"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, torch.load(folder / "found.pt")


def test_two_processes_equal_one_with_twice_the_batch(pair, tmp_path):
    _, two = pair
    one = two_processes.work(tmp_path, batch_size=4)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert torch.equal(one["counts"], two["counts"])
    assert torch.equal(one["tokens"], two["tokens"])
    torch.testing.assert_close(one["losses"], two["losses"], rtol=1e-5, atol=1e-6)
    assert two["validation"] == pytest.approx(one["validation"], rel=1e-5)
    for mine, theirs in zip(one["numbers"], two["numbers"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_files_are_written_once_and_nothing_is_left_over(pair):
    folder, two = pair
    assert {p.name for p in folder.iterdir()} == {"profile.safetensors", "run", "found.pt"}
    assert {p.name for p in (folder / "run").iterdir()} == {"adapter.safetensors", "adapter.json", "log.csv"}
    lines = (folder / "run" / "log.csv").read_text().splitlines()
    assert len(lines) == 1 + len(two["losses"])
