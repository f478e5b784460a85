"""Training beside other busy processes, with and without OMP_WAIT_POLICY: python benchmarks/busy.py [results.json]

Each measurement is a process of its own that trains the embedded model with all cores, alone or beside processes that
compute without pause; the settings take turns. "active" is what OpenMP does unless told otherwise: threads that wait for
each other spin, and on a busy machine they spin in the time of the thread that is waited for. "passive" is what
`import ssetools` sets where nothing is set.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from ssetools.files import provenance, write_json

POLICIES, NEIGHBOURS, STEPS = ("active", "passive"), (0, 2), 3


def speed(policy: str, neighbours: int) -> float:
    """Returns training tokens a second of a process beside busy ones."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        command = [sys.executable, __file__, "--here"]
        environment = os.environ | {"OMP_WAIT_POLICY": policy}
        result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return json.loads(result.stdout.splitlines()[-1])
    finally:
        for process in busy:
            process.kill()
            process.wait()


def speed_here() -> None:
    """Trains in this process and prints tokens a second."""
    from training import BATCH, WINDOW, attached, load

    with attached(load("gemma-3-270m", 8), "lape") as step:
        step()
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
    print(json.dumps(STEPS * BATCH * WINDOW / (time.perf_counter() - began)))


def main() -> None:
    """Measures both settings, alone and beside two busy processes; writes JSON when a path is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        speed_here()
        return
    speeds: dict[tuple[str, int], list[float]] = {(p, n): [] for p in POLICIES for n in NEIGHBOURS}
    for number in range(arguments.rounds):
        for key in list(speeds)[:: -1 if number % 2 else 1]:
            speeds[key].append(speed(*key))
            print(f"{key[0]:<8} beside {key[1]} busy processes: {speeds[key][-1]:6.1f} tokens/s", flush=True)
    medians = {key: statistics.median(values) for key, values in speeds.items()}
    result = {
        "rows": [{"policy": p, "busy": n, "tokens_per_second": round(x, 1)} for (p, n), x in medians.items()],
        "busy_over_alone": round(medians["passive", 2] / medians["passive", 0], 3),
        "passive_over_active_alone": round(medians["passive", 0] / medians["active", 0], 3),
        "cores": os.cpu_count(),
        **provenance(),
    }
    print(f"beside two busy processes: {result['busy_over_alone']:.0%} of the speed alone", flush=True)
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
