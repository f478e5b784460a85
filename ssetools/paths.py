"""The one place that decides where caches and runs live, and how a file comes to be whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """Returns the folder of downloaded models and texts: `$SSETOOLS_HOME`, else the user's cache folder."""
    home = os.environ.get("SSETOOLS_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "ssetools"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")).expanduser() / "ssetools"


def model_dir(model: str, runs: str | Path = "runs") -> Path:
    """Returns `runs/<model>`, the folder of a model's profile and neuron sets; a hub id loses its slash."""
    if Path(model).is_dir():
        model = Path(model).resolve().name
    return Path(runs) / model.strip("/").replace("/", "--")


def run_dir(model: str, lang: str, method: str, seed: int, runs: str | Path = "runs") -> Path:
    """Returns `runs/<model>/<lang>/<method>-seed<k>`, the folder of one fine-tuning run."""
    return model_dir(model, runs) / lang / f"{method}-seed{seed}"


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path to write to, and renames it to `path` only if the block succeeds.

    Works for files and for folders (make the folder at the temporary path). A reader never sees half a file, and
    a failed or interrupted block leaves nothing behind. A folder takes the place of an earlier one of the same files (a
    README.md may stand beside them), and of no other.

    Raises:
        FileExistsError: If there is a folder with other files.
        OSError: With one sentence about free space when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield scratch / path.name
        readable(scratch)
        if path.is_dir():
            _check_replaceable(path, scratch / path.name)
            shutil.rmtree(path)
        (scratch / path.name).replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        free = shutil.disk_usage(path.parent).free / 2**20
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or free < 1:
            raise OSError(
                errno.ENOSPC,
                f"The disk is full while writing {path} ({free:.0f} MiB free). Free some space, or set "
                "SSETOOLS_HOME (caches) or the runs folder to another disk; nothing half-written was left",
            ) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def readable(folder: Path) -> None:
    """Gives files the permissions of new ones: safetensors writes for its user alone, and a lab shares its cache."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        new = Path(place) / "new"
        new.touch()
        mode = new.stat().st_mode
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def _check_replaceable(old: Path, new: Path) -> None:
    ours = {p.name for p in new.iterdir()} if new.is_dir() else set()
    theirs = sorted({p.name for p in old.iterdir()} - ours - {"README.md"})
    if theirs:
        listed = ", ".join(theirs[:3]) + (" ..." if len(theirs) > 3 else "")
        raise FileExistsError(f"{old} holds other files ({listed}), which are not overwritten: name another folder.")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: That names the file, if it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it to make it again.") from error


def write_json(path: str | Path, data: Any) -> Path:
    """Writes `data` as indented UTF-8 JSON, whole or not at all."""
    with whole_file(path) as scratch:
        scratch.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Path(path)
