"""Sources of text: the declaration, messages, SIB-200 in hub layout, and your own files."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from ssetools.errors import TextUnavailable
from ssetools.languages import get_language
from ssetools.text import hub as hub_corpora
from ssetools.text import sources as corpora
from ssetools.text.embedded import clean_messages, plain_text
from ssetools.text.own import split_of
from ssetools.text.sources import load_parallel, load_texts
from ssetools.text.windows import pack_tokens


@pytest.fixture
def declaration(tmp_path):
    """Two declarations in the layout of the npm package; Icelandic lacks article 30."""
    for code, last in (("yor", 30), ("eng", 30), ("isl", 29)):
        articles = "".join(
            f'<article data-number="{n}"><h2>A {n}</h2><ol><li><p>{code} {n} <b>x</b></p></li></ol></article>'
            for n in range(1, last + 1)
        )
        page = f"<h1>T</h1><header><h2>P</h2><p>{code}  0</p></header>{articles}"
        (tmp_path / f"{code}.html").write_text(f"<html><body>{page}</body></html>")
    return f"udhr:{tmp_path}"


def test_declaration_splits_by_article(declaration):
    assert load_texts(declaration, "yo", "train") == ["yor 0", *[f"yor {n} x" for n in range(1, 19)]]
    assert load_texts(declaration, "yo", "validation") == [f"yor {n} x" for n in range(19, 22)]
    assert load_texts(declaration, "yo", "test") == [f"yor {n} x" for n in range(22, 31)]


def test_declaration_is_parallel(declaration):
    found = load_parallel(declaration, ["yo", "en"], "test")
    assert [a[3:] == b[3:] for a, b in zip(found["yo"], found["en"], strict=True)] == [True] * 9


def test_incomplete_declaration_is_refused(declaration):
    with pytest.raises(ValueError, match=r"isl\.html lacks the articles \[30\] .* in Icelandic"):
        load_texts(declaration, "is", "train")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("'''Bold''' [[Help:Contents|help]] for you", "Bold help for you"),
        ("{{PLURAL:$1|$1 page|$1 pages}} of {{SITENAME}}", "$1 pages of MediaWiki"),
        ("{{GENDER:$1|He|She|They}} <br/>wrote", "He wrote"),
        ("a {{GRAMMAR:genitive|{{SITENAME}}}} b", "a MediaWiki b"),
    ],
)
def test_wikitext_becomes_plain(message, text):
    assert plain_text(message) == text


def test_messages_are_cleaned_and_split_in_parallel(tmp_path):
    english = {f"k{i}": f"This is the message number {i} here" for i in range(60)}
    yoruba = {f"k{i}": f"eyi ni oro ti o je {i}" for i in range(60)}
    yoruba |= {"k0": english["k0"], "k1": "ni kukuru", "k2": yoruba["k3"], "@metadata": {"authors": []}}
    (tmp_path / "core" / "i18n").mkdir(parents=True)
    for code, content in (("en", english), ("yo", yoruba), ("qqq", english)):
        (tmp_path / "core" / "i18n" / f"{code}.json").write_text(json.dumps(content))
    source = f"mediawiki:{tmp_path}"
    kept = {t for split in corpora.SPLITS for t in load_texts(source, "yo", split)}
    assert len(kept) == 57, "untranslated, short and repeated messages are dropped"
    pairs = load_parallel(source, ["yo", "en"], "train")
    assert [y.split()[-1] == e.split()[-2] for y, e in zip(pairs["yo"], pairs["en"], strict=True)].count(False) <= 1


def test_unspaced_scripts_count_characters():
    kept = clean_messages({"a": "这是一个很长的句子啊", "b": "太短"}, {}, get_language("zh"))
    assert list(kept) == ["a"]


@pytest.fixture
def sib200(tmp_path):
    folder = tmp_path / "sib200"
    (folder / "data" / "yor_Latn").mkdir(parents=True)
    (folder / "data" / "yor_Latn" / "test.tsv").write_text("index_id\tcategory\ttext\n7\ttravel\tÌlú ńlá ni.\n")
    (folder / "README.md").write_text(
        '---\nconfigs:\n- config_name: yor_Latn\n  sep: "\\t"\n  data_files:\n  - split: test\n'
        "    path: data/yor_Latn/test.tsv\n---\n"
    )
    return f"sib200:{folder}"


def test_sib200_from_a_local_folder_in_hub_layout(sib200):
    assert load_texts(sib200, "yo", "test") == ["Ìlú ńlá ni."]
    with pytest.raises(ValueError, match="no data/isl_Latn"):
        load_texts(sib200, "is", "test")


def test_sib200_without_the_hub_names_reason_and_remedy(monkeypatch):
    def refuse(*args, **options):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(hub_corpora, "hub_reachable", lambda: False)
    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(TextUnavailable, match='no route to the hub.*"sib200:FOLDER"'):
        load_texts("sib200", "yo", "test")


def write_own(path, documents):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
        path.write_text("\n\n".join(documents), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"content": documents}), path)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_own_text_is_split_by_a_hash_of_the_document(tmp_path, suffix):
    documents = [f"ọ̀rọ̀ {i} tí mo kọ" for i in range(200)]
    path = write_own(tmp_path / f"mine{suffix}", [*documents, documents[0]])
    splits = {split: load_texts(str(path), "yo", split) for split in corpora.SPLITS}
    assert sorted(t for texts in splits.values() for t in texts) == sorted(documents), "no document lost or doubled"
    assert 130 < len(splits["train"]) < 190
    folder = write_own(tmp_path / "folder" / "yo" / f"mine{suffix}", documents).parent.parent
    assert sorted(load_texts(str(folder), "yo", "train")) == sorted(splits["train"]), "a folder per language is found"


def test_own_split_files_are_respected(tmp_path):
    write_own(tmp_path / "train.txt", ["a a", "b b"])
    write_own(tmp_path / "test-0.jsonl", ["c c"])
    assert load_texts(str(tmp_path), "yo", "train") == ["a a", "b b"]
    assert load_texts(str(tmp_path), "yo", "test") == ["c c"]
    with pytest.raises(ValueError, match="has no validation text"):
        load_texts(str(tmp_path), "yo", "validation")


def test_folders_named_after_splits_are_respected(tmp_path):
    for lang in ("yo", "is"):
        for split, text in (("train", "a a"), ("test", "c c")):
            path = tmp_path / lang / split / "part.jsonl"
            path.parent.mkdir(parents=True)
            write_own(path, [f"{text} {lang}"])
    assert load_texts(str(tmp_path), "yo", "train") == ["a a yo"]
    assert load_texts(str(tmp_path), "is", "test") == ["c c is"]


def test_text_of_other_languages_does_not_stand_in_for_one_that_is_missing(tmp_path):
    for lang in ("yo", "is"):
        (tmp_path / lang).mkdir()
        write_own(tmp_path / lang / "train.txt", [lang])
    with pytest.raises(ValueError, match="other languages .*\\(is, yo\\), and none in fr"):
        load_texts(str(tmp_path), "fr", "train")


def test_an_empty_source_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "train.txt", ["not meant"])
    with pytest.raises(ValueError, match="source of text is empty"):
        load_texts("", "yo", "train")


def test_sources_join(tmp_path, declaration):
    path = write_own(tmp_path / "own" / "train.txt", ["mine"])
    assert load_texts(f"{declaration}+{path.parent}", "yo", "train")[-1] == "mine"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"caf\xe9", "is not UTF-8 text"),
        ("a.jsonl", b'{"text": "x"}\n{oops\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "has no column 'text' or 'content'; it has 'body'"),
        ("a.docx", b"x", "is not a text file that can be read"),
    ],
)
def test_bad_own_text(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_texts(str(tmp_path / name), "yo", "train")


def test_unknown_source_and_split(tmp_path):
    with pytest.raises(ValueError, match="Unknown source 'udrh': use udhr, mediawiki, sib200"):
        load_texts("udrh", "yo", "train")
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        load_texts("udhr", "yo", "dev")
    with pytest.raises(ValueError, match="Unknown language 'xx'"):
        load_texts("udhr:.", "xx", "train")


def test_split_of_is_fixed_forever():
    assert (
        " ".join(split_of(f"core/i18n/k{i}")[0] for i in range(12, 40))
        == "v t t t t t t t t v t t t t t t t t t t v t v t t t t t"
    )
    shares = [split_of(str(i)) for i in range(2000)]
    assert shares.count("train") == pytest.approx(1600, abs=60)
    assert shares.count("test") == pytest.approx(200, abs=45)


def test_a_budget_without_room_for_a_token_is_refused(word_tokenizer):
    with pytest.raises(ValueError, match="room for a token besides BOS; got 1"):
        pack_tokens(word_tokenizer, ["w3 w4"], 16, max_tokens=1)


def test_packing_opens_every_window_with_bos_and_loses_nothing(word_tokenizer):
    texts = ["w5 w6 w7", "w8 w9", "  ", "w10"]
    windows = pack_tokens(word_tokenizer, texts, window=5)
    assert [w[0].item() for w in windows] == [2] * len(windows)
    assert [len(w) for w in windows[:-1]] == [5] * (len(windows) - 1)
    assert [i for w in windows for i in w[1:].tolist()] == [5, 6, 7, 1, 8, 9, 1, 10, 1]
    with pytest.raises(ValueError, match="every document is empty"):
        pack_tokens(word_tokenizer, ["", " "])
    with pytest.raises(ValueError, match="not one string"):
        pack_tokens(word_tokenizer, "w5")
