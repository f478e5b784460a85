"""Streams of training text: order, what is left out, packing to a file, resume, and training on it."""

import errno
import io
import json
import random

import families
import hub_layouts
import pytest
import torch

from ssetools import finetune, stream_texts
from ssetools.languages import get_language
from ssetools.text import windows as packing
from ssetools.text.sources import load_texts
from ssetools.text.streams import Overlap, TextStream
from ssetools.text.windows import PackedWindows, pack_in_memory, pack_stream

WORDS = [f"w{i}" for i in range(3, 96)]


def documents(count, seed=0, length=40):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=length)) for _ in range(count)]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("SSETOOLS_HOME", str(tmp_path / "home"))


@pytest.fixture
def web(tmp_path):
    return hub_layouts.glotcc(tmp_path / "glotcc", documents(150))


# --- order ---


def test_a_stream_is_all_training_text_once_in_an_order_of_the_seed(web):
    expected = load_texts(web, "yo", "train", max_bytes=10**9)
    first = list(stream_texts(web, "yo", buffer=50))
    assert sorted(first) == sorted(expected)
    assert first != expected
    assert list(stream_texts(web, "yo", buffer=50)) == first, "the same in each pass"
    other = list(stream_texts(web, "yo", buffer=50, seed=1))
    assert other != first
    assert sorted(other) == sorted(first)


def test_files_are_read_in_an_order_of_the_seed(web):
    at_first = {list(stream_texts(web, "yo", seed=seed, buffer=1))[0] for seed in range(6)}
    assert len(at_first) == 3, "each of the three files comes first for some seed"


def test_sources_take_turns(tmp_path, web):
    own = tmp_path / "own" / "train.txt"
    own.parent.mkdir()
    own.write_text("\n".join(f"mine {i}" for i in range(5)))
    found = list(stream_texts(f"{own.parent}+{web}", "yo", buffer=1))
    assert [text.startswith("mine") for text in found[:12]] == [True, False] * 5 + [False] * 2
    assert len(found) == 5 + len(load_texts(web, "yo", "train", max_bytes=10**9))


def test_own_text_streams_as_it_loads(tmp_path):
    path = tmp_path / "mine.jsonl"
    texts = [*documents(200), *documents(3)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert sorted(stream_texts(str(path), "yo")) == sorted(load_texts(str(path), "yo", "train"))


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_stream_goes_on_from_any_block(tmp_path, web, blocks):
    own = tmp_path / "train.txt"
    own.write_text("\n".join(documents(70, seed=5)))
    stream = stream_texts(f"{web}+{own}", "yo", buffer=32)
    whole = list(stream.blocks())
    rest = list(stream_texts(f"{web}+{own}", "yo", buffer=32).blocks(whole[blocks - 1][1]))
    assert rest == whole[blocks:]


# --- apart from evaluation text ---


@pytest.fixture
def overlap():
    return Overlap(["Ọjọ́ kan ni ìjàpá lọ sí ọjà láti ra iṣu, àgbàdo àti ẹ̀wà fún àwọn ọmọ rẹ̀."], get_language("yo"))


@pytest.mark.parametrize(
    "copy",
    [
        "Ọjọ́ kan ni ìjàpá lọ sí ọjà láti ra iṣu, àgbàdo àti ẹ̀wà fún àwọn ọmọ rẹ̀.",
        "OJO KAN NI IJAPA  LO SI OJA - LATI RA ISU AGBADO ATI EWA fun awon omo",
        "kan ni ìjàpá lọ sí ọjà láti\nra iṣu, àgbàdo àti ẹ̀wà fún àwọn ọmọ rẹ̀",
    ],
)
def test_copies_are_left_out_whatever_their_spelling(overlap, copy):
    assert overlap.without(f"Line before.\n{copy}\nLine after.") == "Line before.\nLine after."
    assert overlap.lines == copy.count("\n") + 1
    assert overlap.without(copy) == ""


def test_shorter_agreement_stays(overlap):
    text = "Ọjọ́ kan ni ìjàpá lọ sí ọjà láti ra iṣu tuntun ní àná, ó sì padà sílé."
    assert overlap.without(text) == text
    assert overlap.without("") == ""
    assert overlap.lines == 0


def test_spans_are_exactly_as_long_as_said():
    letters = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=200))
    overlap = Overlap([letters], get_language("yo"))
    for start in range(0, 150, 7):
        assert overlap.without("9" + letters[start : start + 50] + "9") == ""
        assert overlap.without("9" + letters[start : start + 49] + "9") != ""
    chinese = Overlap(["这是一个很长的句子啊而且还要更长一些才行"], get_language("zh"))
    assert chinese.without("他说:是一个很长的句子啊而且还要更长一些") == ""


def test_training_text_is_apart_from_what_is_measured_on(web, tmp_path):
    held_out = load_texts(web, "yo", "test")
    assert not set(held_out) & set(stream_texts(web, "yo"))
    twin = hub_layouts.glotcc(tmp_path / "twin", [*documents(150), f"new line {'w5 ' * 30}\n{held_out[0]} and more"])
    found = list(stream_texts(twin, "yo"))
    assert f"new line {'w5 ' * 30}".strip() in [text.strip() for text in found], (
        "the copied line went, the other stayed"
    )
    first = found[0]
    stream = stream_texts(twin, "yo", avoid=[first])
    assert first not in list(stream)
    assert stream.facts["avoids"] != stream_texts(twin, "yo").facts["avoids"]


# --- packing ---


def pack(source, tokenizer, windows=10**6, **options):
    return pack_stream(tokenizer, stream_texts(source, "yo", buffer=16, **options), 17, windows)


def test_packing_loses_nothing_and_opens_every_window(web, word_tokenizer, capsys):
    windows = pack(web, word_tokenizer)
    texts = list(stream_texts(web, "yo", buffer=16))
    expected = [i for text in texts for i in word_tokenizer(text + "\n", add_special_tokens=False)["input_ids"]]
    assert windows.tokens.tolist() == expected
    assert len(windows) == len(expected) // 16
    assert windows[3].tolist() == [2, *expected[48:64]]
    assert "Packed" in capsys.readouterr().out
    with pytest.raises(IndexError, match="There is no window"):
        windows[len(windows)]


def test_packing_stops_at_the_budget_and_is_done_once(web, word_tokenizer, capsys, monkeypatch):
    whole = pack(web, word_tokenizer)
    part = pack(web, word_tokenizer, windows=9)
    assert len(part) == 9
    assert part.tokens.tolist() == whole.tokens[: 9 * 16].tolist()
    capsys.readouterr()
    monkeypatch.setattr(TextStream, "blocks", None)
    monkeypatch.setattr(packing, "FileLock", None)  # which a read-only cache does not allow
    assert pack(web, word_tokenizer, windows=9).digest() == part.digest()
    assert capsys.readouterr().out == ""


def test_few_characters_are_tokenised_together_and_none_after_the_budget(web, word_tokenizer, monkeypatch):
    monkeypatch.setattr(packing, "_CHARACTERS", 300)
    whole = pack(web, word_tokenizer)
    batches = []

    class Watched(type(word_tokenizer)):
        def __call__(self, texts, **options):
            batches.append(texts)
            return super().__call__(texts, **options)

    monkeypatch.setattr(word_tokenizer, "__class__", Watched)
    part = pack(web, word_tokenizer, windows=5)
    assert part.tokens.tolist() == whole.tokens[: 5 * 16].tolist()
    assert all(sum(map(len, texts[:-1])) < 300 for texts in batches)
    assert sum(map(len, batches)) < 12, "a block has 16 documents"


def test_memory_and_file_pack_alike(web, word_tokenizer):
    windows = pack(web, word_tokenizer)
    same = pack_in_memory(word_tokenizer, stream_texts(web, "yo", buffer=16), 17)
    assert same.digest() == windows.digest()
    assert PackedWindows(same.tokens, [2], 18).digest() != windows.digest()
    assert PackedWindows(same.tokens, [], 17).digest() != windows.digest()


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_stopped_packing_goes_on_to_the_same_tokens(web, word_tokenizer, tmp_path, monkeypatch, capsys, after):
    expected = pack(web, word_tokenizer)
    lines = json.loads(next((tmp_path / "home" / "tokens").glob("*/about.json")).read_text())["lines_left_out"]
    monkeypatch.setenv("SSETOOLS_HOME", str(tmp_path / "cut"))
    blocks, seen = TextStream.blocks, []

    def dying(self, start=None):
        for block in blocks(self, start):
            if len(seen) == after:
                raise Killed
            seen.append(block)
            yield block

    monkeypatch.setattr(TextStream, "blocks", dying)
    with pytest.raises(Killed):
        pack(web, word_tokenizer)
    partial = next((tmp_path / "cut" / "tokens").glob("*/state.json")).parent
    with open(partial / "tokens.bin", "ab") as file:
        file.write(b"\0" * 40)  # written, but not recorded
    monkeypatch.setattr(TextStream, "blocks", blocks)
    capsys.readouterr()
    resumed = pack(web, word_tokenizer)
    assert "resumes after" in capsys.readouterr().out
    assert resumed.tokens.tolist() == expected.tokens.tolist()
    about = json.loads(next((tmp_path / "cut" / "tokens").glob("*/about.json")).read_text())
    assert about["lines_left_out"] == lines
    assert sorted(path.name for path in partial.iterdir()) == ["about.json", "tokens.bin"]


def test_a_packing_whose_last_file_fails_loses_nothing(web, word_tokenizer, tmp_path, monkeypatch):
    expected = pack(web, word_tokenizer)
    monkeypatch.setenv("SSETOOLS_HOME", str(tmp_path / "cut"))
    write = packing.write_json

    def full(path, data):
        if path.name == "about.json":
            raise OSError("disk full")
        return write(path, data)

    monkeypatch.setattr(packing, "write_json", full)
    with pytest.raises(OSError, match="disk full"):
        pack(web, word_tokenizer)
    monkeypatch.setattr(packing, "write_json", write)
    assert pack(web, word_tokenizer).tokens.tolist() == expected.tokens.tolist()


def test_a_packing_on_a_full_disk_names_its_file_and_goes_on(web, word_tokenizer, tmp_path, monkeypatch):
    expected = pack(web, word_tokenizer)
    monkeypatch.setenv("SSETOOLS_HOME", str(tmp_path / "full"))

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "open", Full, raising=False)
        with pytest.raises(OSError, match=r"The disk is full while writing .*tokens\.bin"):
            pack(web, word_tokenizer)
    assert pack(web, word_tokenizer).tokens.tolist() == expected.tokens.tolist()


# --- training on it ---

SETTINGS = {"window": 17, "batch_size": 2, "learning_rate": 0.02, "seed": 3}


def trained(model, tokenizer, texts, **options):
    result = finetune(model, tokenizer, texts, neurons=families.some_neurons(model), **SETTINGS, **options)
    weights = {name: value.clone() for name, value in result.adapter.state_dict().items()}
    result.adapter.detach()
    return result, weights


def test_training_on_a_stream_equals_training_on_its_texts(web, word_tokenizer):
    model = families.tiny_model("llama")
    one, weights = trained(model, word_tokenizer, stream_texts(web, "yo"), max_tokens=10**6)
    two, same = trained(model, word_tokenizer, list(stream_texts(web, "yo")), max_tokens=10**6)
    assert one.tokens == two.tokens > 2000
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_training_says_when_the_text_ends_first(tmp_path, word_tokenizer, capsys):
    source = hub_layouts.glotcc(tmp_path / "small", documents(30))
    model = families.tiny_model("llama")
    result, _ = trained(model, word_tokenizer, stream_texts(source, "yo"), max_tokens=100_000)
    assert f"100,000 were asked for: {result.tokens:,} are trained on, in whole steps" in capsys.readouterr().out
    assert result.tokens < 3000
    twice, _ = trained(model, word_tokenizer, stream_texts(source, "yo"), max_tokens=100_000, epochs=2)
    assert result.tokens * 2 - 34 <= twice.tokens <= result.tokens * 2 + 34
    trained(model, word_tokenizer, stream_texts(source, "yo"), max_tokens=340)
    assert "asked for" not in capsys.readouterr().out.split("Packed")[-1]


def test_bad_streams(tmp_path, web, word_tokenizer):
    with pytest.raises(ValueError, match="needs at least 1"):
        stream_texts(web, "yo", buffer=0)
    with pytest.raises(ValueError, match="Unknown source 'glotc'"):
        stream_texts("glotc", "yo")
    with pytest.raises(ValueError, match="names a folder that does not exist"):
        stream_texts("glotcc:nowhere", "yo")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "test.txt").write_text("only test")
    with pytest.raises(ValueError, match="has no train text for 'yo'"):
        stream_texts(str(tmp_path / "one"), "yo")
    (tmp_path / "one" / "train.txt").write_text(" \n ")
    with pytest.raises(ValueError, match="has no train text for 'yo'"):
        pack(str(tmp_path / "one"), word_tokenizer)
