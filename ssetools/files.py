"""Where caches and runs are stored, and how files are written, verified and reused."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from filelock import FileLock
from safetensors import safe_open

from ssetools.errors import InvalidInput

if TYPE_CHECKING:
    import torch

_SAMPLES, _SAMPLE_BYTES = 64, 4096  # of each file of weights, at even distances
_ROWS = 8  # of each tensor, at even distances
_FULL, _FORBIDDEN = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)
_PACKAGES = ("ssetools", "torch", "transformers", "bitsandbytes", "accelerate", "datasets", "peft", "numpy")


def cache_dir() -> Path:
    """Returns the folder of downloaded models and texts: `$SSETOOLS_HOME`, else the user's cache folder."""
    if home := os.environ.get("SSETOOLS_HOME"):
        return Path(home).expanduser()
    variable, place = ("LOCALAPPDATA", "~/AppData/Local") if sys.platform == "win32" else ("XDG_CACHE_HOME", "~/.cache")
    try:
        return Path(os.environ.get(variable, place)).expanduser() / "ssetools"
    except RuntimeError as error:
        raise InvalidInput("This user has no home folder for caches: set SSETOOLS_HOME to a folder.") from error


def model_dir(model: str, runs: str | Path = "runs") -> Path:
    """Returns `runs/<model>`, the folder of a model's profile and neuron sets; a hub id loses its slash."""
    if Path(model).is_dir():
        model = Path(model).resolve().name
    return Path(runs) / model.strip("/").replace("/", "--")


def run_dir(model: str, lang: str, method: str, seed: int, runs: str | Path = "runs") -> Path:
    """Returns `runs/<model>/<lang>/<method>-seed<k>`, the folder of one fine-tuning run."""
    return model_dir(model, runs) / lang / f"{method}-seed{seed}"


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path, and renames the file or folder made there to `path` only if the block succeeds.

    A folder replaces an earlier one that has no other files than the new one, and a README.md; otherwise it is a
    `FileExistsError`. Other errors are those of `writing`.
    """
    path = Path(path)
    scratch = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    new = scratch / path.name
    try:
        with writing(path):
            scratch.mkdir(parents=True)
            yield new
            readable(scratch)
            if path.is_dir():
                others = sorted({p.name for p in path.iterdir()} - {p.name for p in new.glob("*")} - {"README.md"})
                if others:
                    raise FileExistsError(f"{path} holds other files ({', '.join(others[:3])}): name another folder.")
                shutil.rmtree(path)
            new.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk, while the block writes `path`, into an `OSError` with one sentence."""
    try:
        yield
    except Exception as error:
        code, said = getattr(error, "errno", None), str(error).lower()
        # safetensors and tokenizers report a full disk in words, torch.save by a RuntimeError without any.
        full = code in _FULL or any(os.strerror(x).lower() in said for x in _FULL)
        full &= "the disk is full" not in said  # said of a file inside already
        free = shutil.disk_usage(next(x for x in path.absolute().parents if x.exists())).free / 2**20
        elsewhere = "or set SSETOOLS_HOME (caches) or the runs folder to another disk"
        if full or isinstance(error, RuntimeError) and free < 1:
            said = f"The disk is full while writing {path} ({free:.0f} MiB free). Free some space, {elsewhere}"
            raise OSError(errno.ENOSPC, f"{said}; the same command then goes on.") from error
        refused = Path(str(getattr(error, "filename", None))).absolute()
        if code in _FORBIDDEN and (path.name in refused.name or refused in path.absolute().parents):
            error = cast(OSError, error)
            raise OSError(code, f"{path} cannot be written ({error.strerror}): allow it, {elsewhere}.") from error
        raise


def readable(folder: Path) -> None:
    """Gives safetensors files the permissions of new files; safetensors makes them readable for their owner only."""
    new = folder / f".{secrets.token_hex(4)}"
    new.touch()
    for path in folder.rglob("*.safetensors"):
        path.chmod(new.stat().st_mode)
    new.unlink()


def read_json(path: str | Path) -> Any:
    """Reads a JSON file; raises `InvalidInput` with its name if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not JSON ({error}): delete it to make it again.") from error


def write_json(path: str | Path, data: Any) -> Path:
    """Writes `data` as indented UTF-8 JSON, atomically; raises `ValueError` for infinite and NaN, which JSON has not."""
    with atomic_write(path) as scratch:
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
        scratch.write_text(text + "\n", encoding="utf-8")
    return Path(path)


@contextlib.contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turns what goes wrong while the block reads a file into an `InvalidInput`: any file may be damaged or hostile.

    The message names the file, what it should be ("a file of neuron sets"), and the fault.
    """
    try:
        yield
    except InvalidInput as error:
        if str(path) in str(error):
            raise
        raise InvalidInput(f"{path} is not {kind}: {error}") from error
    except Exception as error:  # of many types, by what the contents are instead
        # EINVAL: torch.load seeks before the start of a file that lacks its end. The last is PyTorch's.
        other = isinstance(error, OSError | ImportError | MemoryError) and getattr(error, "errno", None) != errno.EINVAL
        if other or type(error).__name__ == "OutOfMemoryError":
            raise
        fault = str(error).split("\n")[0] or "its end is missing"
        raise InvalidInput(f"{path} is not {kind}, or is damaged ({type(error).__name__}: {fault}).") from error


def facts_of(path: str | Path) -> dict[str, Any]:
    """Reads the facts that a file records: a JSON file, the metadata of safetensors, or a folder's manifest.json.

    The languages of a profile or of neuron sets are sorted, since their order changes nothing.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / "manifest.json" if path.is_dir() else path
        if not isinstance(facts := read_json(path), dict):
            raise InvalidInput(f"{path} records no facts ({facts!r:.60}): delete it to make it again.")
        return facts
    header = load_tensors(path, "a safetensors file", only_metadata=True)[1]
    with reading(path, "a file of ssetools"):
        header |= header.pop("metadata", {})
    if isinstance(codes := header.get("languages"), str):
        header["languages"] = sorted(codes.split())
    return header


def kept(
    path: str | Path,
    wanted: Mapping[str, Any],
    on_change: Literal["raise", "remake"] = "raise",
    remedy: str = "Ask for the same, name another folder, or delete it to make it again.",
) -> dict[str, Any] | None:
    """Checks whether a file can be reused: whether it records (`facts_of`) the facts that are wanted, by name.

    Returns:
        All facts that the file records; None if there is no file, or it differs and `on_change` is "remake".

    Raises:
        InvalidInput: If the file differs, with "raise". The message names each fact, its value and the one wanted, and
            ends with the remedy. Facts are compared as JSON, so a tuple equals a list.
    """
    if not Path(path).exists():
        return None
    facts = facts_of(path)
    differ = differences(facts, wanted)
    if differ and on_change == "raise":
        raise InvalidInput(f"{path} does not match what is asked for now ({'; '.join(differ)}). {remedy}")
    return None if differ else facts


def differences(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Lists the facts that differ from the wanted ones, each as a phrase with both values."""
    differ = []
    for name, value in json.loads(json.dumps(dict(wanted))).items():
        there = facts.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            differ += [f"{name}.{phrase}" for phrase in differences(there, dict.fromkeys(there) | value)]
        elif isinstance(value, list) and isinstance(there, list) and len(value) != len(there):
            only = ", ".join([str(x) for x in (*there, *value) if (x in there) != (x in value)][:5])
            differ.append(f"{name}: {len(there)}, wanted {len(value)}; only in one: {only}")
        # As strings too: numbers in a safetensors file's metadata are read as strings.
        elif there != value and str(there) != str(value):
            differ.append(f"{name}: {there!r:.60}, wanted {value!r:.60}")
    return differ


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping) -> Path:
    """Writes tensors and metadata (strings as they are, anything else as JSON) to one safetensors file."""
    import safetensors.torch

    strings = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in metadata.items()}
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as scratch:
        scratch.write_bytes(safetensors.torch.save(packed, strings))
    return Path(path)


def load_tensors(
    path: str | Path, kind: str, needed: Sequence[str] = (), only_metadata: bool = False
) -> tuple[dict[str, torch.Tensor], dict]:
    """Returns the tensors of a safetensors file, unless `only_metadata`, and its metadata, in which JSON is decoded.

    A file that is damaged, lacks a `needed` tensor, or is not what `kind` ("a neuron set") says is an `InvalidInput`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no {path} ({kind}).")
    with reading(path, kind):
        with safe_open(path, "pt") as file:
            names = () if only_metadata else file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            strings = file.metadata() or {}
        if missing := [name for name in needed if name not in tensors]:
            raise InvalidInput(f"it has no {missing}.")
        coded = {k: v for k, v in strings.items() if v.startswith(("[", "{", '"')) or v in ("null", "true", "false")}
        return tensors, strings | {key: json.loads(value) for key, value in coded.items()}


def digest_of_weights(folder: Path) -> str | None:
    """Returns the SHA-256 of the shape, dtype and eight rows of each tensor of a transformers model.

    Copies in other files, or with other names of tensors, have the same. None if the folder has no safetensors.
    """
    import torch

    digests = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                shape = file.get_slice(name).get_shape()
                rows = file.get_slice(name) if shape else file.get_tensor(name)[None]
                starts = range(0, shape[0], -(-shape[0] // _ROWS)) if shape else (0,)
                chosen = torch.cat([rows[i : i + 1] for i in starts])
                digests.add(f"{shape} {chosen.dtype} {digest(chosen.view(torch.uint8))}")
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest() if digests else None


def digest_of_files(folder: Path) -> str:
    """Returns the SHA-256 of a model's config.json and of samples of its weight files, with their names and sizes."""
    sha256 = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        sha256.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for number in range(_SAMPLES):
                file.seek(number * size // _SAMPLES)
                sha256.update(file.read(_SAMPLE_BYTES))
    return sha256.hexdigest()


def digest(tensor: torch.Tensor) -> str:
    """Returns the SHA-256 of a tensor's values."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def digest_of(data: Any) -> str:
    """Returns the SHA-256 of texts or other data that JSON can represent, in any lists and dicts."""
    return hashlib.sha256(json.dumps(data, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance() -> dict[str, Any]:
    """Returns package versions, the commit of a source checkout (None elsewhere) and the kind of machine."""
    import torch

    versions: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys(_PACKAGES)}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    commit, root = "", Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "--verify", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    # With other vector instructions, rounding differs, and perplexity by a few parts in 10,000.
    amx = " and AMX" if getattr(torch.cpu, "_is_amx_tile_supported", bool)() else ""
    cpu = f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}{amx}, {os.cpu_count()} cores"
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return {"versions": versions, "commit": commit or None, "hardware": hardware}


_VERIFIED: dict[Path, int] = {}  # cached folders that this process has verified, with the time of their manifest


def cached_folder(name: str, build: Callable[[Path], dict], wanted: Mapping[str, Any] | None = None) -> Path:
    """Returns `cache_dir()/name`, and builds it first if it is missing, damaged or has other facts than wanted.

    `build` fills the empty folder that it is given, and returns facts for its `manifest.json`, which holds the SHA-256 of
    each file too. A process verifies all files once.
    """
    folder = cache_dir() / name
    if not _fault(folder, wanted):
        return folder
    # Several processes may find it missing: one builds, the others wait and use the result.
    with writing(folder), FileLock(folder.parent / f"{folder.name}.lock"):
        if fault := _fault(folder, wanted):
            if folder.exists():
                print(f"The cached {name} is not used ({fault}); building it again.", flush=True)
                shutil.rmtree(folder)
            with atomic_write(folder) as scratch:
                scratch.mkdir()
                facts = build(scratch)
                files = {p.relative_to(scratch).as_posix(): file_sha256(p) for p in scratch.rglob("*") if p.is_file()}
                write_json(scratch / "manifest.json", {**facts, "files": files})
    return folder


def _fault(folder: Path, wanted: Mapping[str, Any] | None) -> str:
    """Says why a cached folder cannot be used; "" if it can."""
    try:
        files, changed = (kept(folder, wanted or {}) or {})["files"], (folder / "manifest.json").stat().st_mtime_ns
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest.json: {error}"
    for name, digest in files.items() if _VERIFIED.get(folder) != changed else ():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            return f"{name} is missing or has changed"
    _VERIFIED[folder] = changed
    return ""
