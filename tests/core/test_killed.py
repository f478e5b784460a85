"""Commands killed at random moments by -9, TERM and Ctrl-C, and started again: the same result, and nothing is left."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import made_up_study
import pytest
from safetensors.torch import load_file

from ssetools.languages import PROFILED_LANGUAGES

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SSETOOLS_KILLS", "4"))
"""Kills of each command."""
SEED = 0
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RUN = ["yo", "--model", "tiny"]
TRAIN = [*RUN, "--16-bit", "--source", "text", "--profile-source", "text", "--tokens", "600"]
COMMANDS = {
    "profile": [
        "profile",
        "--model",
        "tiny",
        "--16-bit",
        "--source",
        "text",
        "--languages",
        "yo is en",
        "--tokens",
        "600",
    ],
    "finetune": ["finetune", *TRAIN, "--top-rate", "0.2", "--max-tokens", "9000", "--window", "64"],
    "evaluate": ["evaluate", *TRAIN, "--top-rate", "0.2", "--max-tokens", "9000", "--window", "64"],
    "export": ["export", *RUN, "peft"],
    "merge": ["merge", *RUN, "merged"],
}
VARYING = {"seconds", "commit", "tokens_per_second", "peak_memory_gib"}
"""Facts that differ between two runs that do the same."""


def command(arguments, folder):
    """Runs a command in a process of its own, in a folder, and ends with its exit status."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    os.chdir(folder)
    os.environ["SSETOOLS_HOME"] = str(Path(folder, "home"))
    from ssetools import cli, steps
    from ssetools.text import sources

    sources.Source.multilingual = True  # the folder has every language
    cli.plan_texts = lambda *_: sources.TextPlan("text", {"stories": "text"}, ("stories",), "made up")
    steps._retention_texts = lambda *_: {x: steps.load_texts("text", x, "validation") for x in ("en", "fr")}
    with open("output.txt", "a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = cli.main(arguments)
    sys.exit(status)


@pytest.fixture(scope="module")
def start():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "transformers", "peft", "ssetools.cli", "ssetools.steps", "ssetools.report"]
    )

    def start(arguments, folder):
        process = context.Process(target=command, args=(arguments, folder))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory, word_tokenizer):
    """The folder before each command and after it, and how long it took, with nothing killed."""
    place = tmp_path_factory.mktemp("reference")
    (place / "0").mkdir()
    before = Path.cwd()
    os.chdir(place / "0")
    made_up_study.made(word_tokenizer)
    for lang in set(PROFILED_LANGUAGES) - set(made_up_study.LANGS):
        shutil.copytree("text/en", f"text/{lang}")
    os.chdir(before)
    start(["languages", "yo"], place / "0").join()  # the server loads what all commands import
    stages = {}
    for number, (name, arguments) in enumerate(COMMANDS.items()):
        shutil.copytree(place / str(number), place / str(number + 1))
        began = time.monotonic()
        process = start(arguments, place / str(number + 1))
        process.join()
        assert process.exitcode == 0, (place / str(number + 1) / "output.txt").read_text()
        stages[name] = place / str(number), place / str(number + 1), time.monotonic() - began
    return stages


def contents(folder):
    """What a folder holds, without what differs between runs; locks, which stay, are empty."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == "output.txt" or name.startswith("home/"):
            continue
        if path.suffix == ".safetensors":
            found[name] = {k: v.tolist() for k, v in load_file(path).items()}
        elif path.suffix == ".json":
            found[name] = json.loads(
                path.read_text(), object_hook=lambda x: {k: v for k, v in x.items() if k not in VARYING}
            )
        elif path.suffix == ".csv":
            found[name] = [line.rsplit(",", 1)[0].split(",")[:5] for line in path.read_text().splitlines()]
        elif path.suffix != ".lock":
            found[name] = path.read_bytes() if path.name != "README.md" else None  # a card has the date
    return found


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_killed_command_loses_nothing(name, start, finished, tmp_path):
    before, after, seconds = finished[name]
    expected, moments = contents(after), random.Random(f"{SEED} {name}")
    seen = []
    for number in range(KILLS):
        folder, how = tmp_path / str(number), SIGNALS[number % len(SIGNALS)]
        shutil.copytree(before, folder)
        process, moment = start(COMMANDS[name], folder), moments.uniform(0.02, 0.8) * seconds
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, how)
        process.join(20)
        assert process.exitcode is not None, f"{name} survived {how.name}"
        seen.append(f"{how.name} after {moment:.2f} s: exit {process.exitcode}")
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # no child is left
        again = start(COMMANDS[name], folder)
        again.join(120)
        assert again.exitcode == 0, f"{seen[-1]}\n{(folder / 'output.txt').read_text()}"
        assert contents(folder) == expected, seen[-1]
        shutil.rmtree(folder)
    killed = sum("exit 0" not in line for line in seen)
    print(f"{name} ({seconds:.1f} s): killed {killed} of {len(seen)} times before its end. {'; '.join(seen)}")
