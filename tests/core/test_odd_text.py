"""Text as people have it: each file or folder is read as it should be, or refused with its name and the remedy."""

import json
import time
import unicodedata
from pathlib import Path

import hub_layouts
import pyarrow
import pyarrow.parquet
import pytest

from ssetools.errors import InvalidInput
from ssetools.languages import LANGUAGES, find_language, get_language
from ssetools.text.own import SPLITS, OwnText, read_documents
from ssetools.text.sources import describe_source, load_parallel, load_texts, plan_texts
from ssetools.text.streams import stream_texts

YORUBA = "Ọjọ́ kan ni ìjàpá lọ sí ọjà."
ARABIC = "ذهب الولد إلى السوق صباحا."
THAI = "วันหนึ่งเต่าไปตลาดเพื่อซื้อมันเทศ"
KHMER = "ថ្ងៃមួយអណ្តើកទៅផ្សារ"


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


# --- one file ---


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("bom.txt", b"\xef\xbb\xbf" + f"{YORUBA}\nlaini".encode(), [YORUBA, "laini"]),
        ("bom.jsonl", b"\xef\xbb\xbf" + json.dumps({"text": YORUBA}).encode(), [YORUBA]),
        ("utf-16.txt", f"{YORUBA}\nlaini".encode("utf-16"), [YORUBA, "laini"]),
        ("utf-16-big.txt", b"\xfe\xff" + f"{YORUBA}\n".encode("utf-16-be"), [YORUBA]),
        ("crlf.txt", f"{YORUBA}\r\n\r\nlaini\r\nmiran\r\n", [YORUBA, "laini\nmiran"]),
        ("old mac.txt", f"{YORUBA}\rlaini\r", [YORUBA, "laini"]),
        ("right-to-left.txt", ARABIC, [ARABIC]),
        ("thai.txt", f"{THAI}\n{KHMER}", [THAI, KHMER]),
        ("Ìwé ìtàn.TXT", YORUBA, [YORUBA]),
        ("null.jsonl", '{"text": null}\n\n{"text": "a"}\n{"text": " "}\n', ["a"]),
        ("strings.jsonl", '"a"\n"b"\n', ["a", "b"]),
        ("quoted.csv", 'id,text\n1,"a, ""b""\nand c"\n2,\n3,d\n', ['a, "b"\nand c', "d"]),
        ("bom.csv", b"\xef\xbb\xbftext,id\r\na,1\r\n", ["a"]),
        ("long field.csv", "text\n" + "a" * 200_000, ["a" * 200_000]),
        ("plain.tsv", 'index\tcontent\n7\t"Rara," o ni.\n8\n', ['"Rara," o ni.']),
        ("column.csv#sentence", "id,sentence\n1,a\n", ["a"]),
        ("column.jsonl#sentence", '{"id": 1, "sentence": "a"}\n', ["a"]),
    ],
)
def test_a_file_is_read(tmp_path, name, content, texts):
    path, _, column = name.partition("#")
    assert list(read_documents(written(tmp_path / path, content), column)) == texts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("latin.txt", "caf\xe9".encode("latin-1"), r"not UTF-8 text \(it has the byte 0xe9\).*iconv -f LATIN1"),
        ("no mark.txt", YORUBA.encode("utf-16-le"), "not UTF-8 text|NUL byte.*iconv -f UTF-16LE"),
        ("ascii.txt", "text".encode("utf-16-le"), "line 1 has a NUL byte.*iconv -f UTF-16LE"),
        ("nul.txt", "a\nb\0c\n", r"line 2 has a NUL byte.*tr -d"),
        ("half.txt", "ab\n".encode("utf-16")[:-1], "not UTF-8 text|truncated"),
        ("text.zip", b"PK\x03\x04", "not a text file that can be read.*Unpack an archive"),
        ("text.json", b"[]", "not a text file that can be read: those end in .txt, .jsonl, .csv"),
        (
            "a.csv",
            "id,sentence\n1,a\n",
            r'no column \'text\' or \'content\'; it has \'id\', \'sentence\'.*a.csv#sentence"',
        ),
        ("a.tsv", "", "no column"),
        ("a.jsonl", '{"id": 1, "body": "x"}\n', r"a.jsonl#body"),
        ("a.csv", 'text\n"two\nlines"\n\n"open', "a.csv, the row from line 5 on is not CSV"),
        ("a.csv", 'text\na\n"b"c\n', "a.csv, the row from line 3 on is not CSV"),
        ("a.jsonl", '\n{"text": ["a"]}', "a.jsonl, line 2: the text is .* of type list"),
        ("a.jsonl", '{"text": 5}', "of type int"),
        ("a.parquet", b"PAR1", "a.parquet is not a parquet file, or is damaged"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n \n", "is empty"),
    ],
)
def test_a_file_is_refused_by_name(tmp_path, name, content, said):
    path = written(tmp_path / name, content)
    with pytest.raises(InvalidInput, match=said) as caught:
        load_texts(str(path), "yo", "train")
    assert name in str(caught.value)


def test_a_column_of_parquet_is_named_or_chosen(tmp_path):
    path = table(tmp_path / "a.parquet", id=[1, 2, 3], sentence=["a", None, "b"])
    with pytest.raises(InvalidInput, match=r"it has 'id', 'sentence'.*a.parquet#sentence"):
        load_texts(str(path), "yo", "train")
    source = f"{path}#sentence"
    assert sorted(sum(splits_of(source).values(), [])) == ["a", "b"]
    with pytest.raises(InvalidInput, match="of type int"):
        load_texts(f"{path}#id", "yo", "train")
    with pytest.raises(InvalidInput, match="no column 'body'"):
        load_texts(f"{tmp_path}#body", "yo", "train")


def splits_of(source, lang="yo"):
    path, _, column = str(source).partition("#")
    own = OwnText(Path(path), lang, column)
    return {split: [text for _, text in own.documents(split)] for split in SPLITS}


def test_one_long_line_and_a_million_short_ones(tmp_path):
    line = written(tmp_path / "line.txt", "ọ̀rọ̀ kan " * 700_000)
    assert [text.count("kan") for text in read_documents(line)] == [700_000]
    lines = written(tmp_path / "lines.txt", "".join(f"laini {i}\n" for i in range(1_000_000)))
    began = time.monotonic()
    assert sum(1 for _ in read_documents(lines)) == 1_000_000
    assert time.monotonic() - began < 60


# --- folders ---


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        ("yo/a.txt", "ig/a.txt"),
        ("yor_Latn/a.txt", "ibo_Latn/a.txt"),
        ("yor/a.txt", "ibo/a.txt"),
        ("Yoruba/a.txt", "Igbo/a.txt"),
        ("Yorùbá/a.txt", "Ìgbò/a.txt"),
        ("YO/a.txt", "IG/a.txt"),
        ("yo.txt", "ig.txt"),
        ("yor_Latn.jsonl", "ibo_Latn.jsonl"),
        ("train/yo.txt", "train/ig.txt"),
        ("yo_train.txt", "ig_train.txt"),
        ("train-yor_Latn-00001.txt", "train-ibo_Latn-00001.txt"),
        ("data/yo-NG/is.txt", "data/ig-NG/is.txt"),
        ("wiki.yo.txt", "wiki.ig.txt"),
        ("yo news.txt", "ig news.txt"),
    ],
)
def test_text_is_found_by_any_name_of_its_language(tmp_path, mine, other):
    for name, text in ((mine, "yo text"), (other, "ig text")):
        written(tmp_path / name, json.dumps({"text": text}) if name.endswith("jsonl") else text)
    for asked in ("yo", "yor"):
        assert sum(splits_of(tmp_path, asked).values(), []) == ["yo text"]
    with pytest.raises(InvalidInput, match=r"text in other languages .*\(ig, yo\), and none in fr"):
        OwnText(tmp_path, "fr")
    assert OwnText(tmp_path / mine, "fr"), "a file that is named itself is taken as it is"


@pytest.mark.parametrize("names", [["my_text.txt", "notes.txt"], ["a.txt", "b.txt"], ["texts/part-1.txt"]])
def test_names_that_are_not_of_languages_do_not_choose(tmp_path, names):
    for name in names:
        written(tmp_path / name, name)
    assert sorted(sum(splits_of(tmp_path).values(), [])) == sorted(names)


def test_a_language_outside_the_table_has_its_own_folder(tmp_path):
    written(tmp_path / "qqx" / "a.txt", "mine")
    written(tmp_path / "yo" / "a.txt", "not mine")
    assert sum(splits_of(tmp_path, "qqx").values(), []) == ["mine"]
    with pytest.raises(InvalidInput, match="none in qqz"):
        OwnText(tmp_path, "qqz")


@pytest.mark.parametrize(
    "names",
    [
        ["train.txt", "validation.txt", "test.txt"],
        ["yo_train.txt", "yo_dev.txt", "yo_test.txt"],
        ["corpus-train.txt", "corpus-validation.txt", "corpus-test.txt"],
        ["train/a.txt", "dev/a.txt", "test/a.txt"],
        ["train/a.txt", "valid/a.txt", "devtest/a.txt"],
        ["Training/a.txt", "val/a.txt", "eval/a.txt"],
        ["train-00000-of-00001.txt", "validation-00000-of-00001.txt", "test-00000-of-00001.txt"],
        ["yo/train.1.txt", "yo/devel.1.txt", "yo/test.1.txt"],
        ["data/train2.txt", "data/dev2.txt", "data/test2.txt"],
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, names):
    for split, name in zip(SPLITS, names, strict=True):
        written(tmp_path / name, f"{split} text")
    written(tmp_path / ".ipynb_checkpoints" / "train-checkpoint.txt", "a copy")
    written(tmp_path / ".train.txt", "hidden")
    assert splits_of(tmp_path) == {split: [f"{split} text"] for split in SPLITS}
    rule = OwnText(tmp_path, "yo").rule
    assert "names of files and folders" in rule
    assert "1 train, 1 validation, 1 test files" in rule


def test_the_rule_of_the_split_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("ssetools.text.embedded.has_apt", lambda: False)
    monkeypatch.setattr("ssetools.text.embedded.declaration_articles", lambda *asked: {"a": "an article"})
    written(tmp_path / "hashed" / "a.txt", "\n".join(f"laini {i}" for i in range(60)))
    assert "A hash of each document" in plan_texts(str(tmp_path / "hashed"), "sib200", "br").reason
    for name in ("train.txt", "dev.txt", "test.txt", "README.txt"):
        written(tmp_path / "named" / name, name)
    reason = plan_texts(str(tmp_path / "named"), "sib200", "br").reason
    assert "1 train, 1 validation, 1 test files; 1 with no split in the name are not used" in reason
    (tmp_path / "named" / "dev.txt").unlink()
    with pytest.raises(InvalidInput, match="has no validation text for 'yo'. The names of files .* 0 validation"):
        load_texts(str(tmp_path / "named"), "yo", "validation")


def test_a_folder_without_text_says_what_it_has(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"empty has no \.txt, .* file\.$"):
        load_texts(str(tmp_path / "empty"), "yo", "train")
    written(tmp_path / "archives" / "a.zip", b"PK")
    with pytest.raises(InvalidInput, match=r"archives has no \.txt, .* file, but a\.zip"):
        load_texts(str(tmp_path / "archives"), "yo", "train")


def test_links_are_followed_once(tmp_path):
    written(tmp_path / "elsewhere" / "train.txt", "mine")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "yo").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "loop").symlink_to(tmp_path / "corpus")
    assert load_texts(str(tmp_path / "corpus"), "yo", "train") == ["mine"]
    (tmp_path / "corpus" / "self.txt").symlink_to(tmp_path / "corpus" / "self.txt")
    with pytest.raises(InvalidInput, match="self.txt is a link to a file that does not exist"):
        load_texts(str(tmp_path / "corpus"), "yo", "train")


def test_files_of_one_name_in_two_folders_lose_nothing(tmp_path):
    for folder in ("a", "b"):
        written(tmp_path / "train" / folder / "part.txt", f"text of {folder}")
    assert load_texts(str(tmp_path), "yo", "train") == ["text of a", "text of b"]


# --- composed text ---


def test_all_text_is_composed_unless_asked_otherwise(tmp_path):
    apart = unicodedata.normalize("NFD", YORUBA)
    source = str(written(tmp_path / "yo" / "train.txt", apart).parent)
    assert load_texts(source, "yo", "train") == [YORUBA] == list(stream_texts(source, "yo"))
    assert (
        load_texts(source, "yo", "train", normalize=None) == [apart] == list(stream_texts(source, "yo", normalize=None))
    )
    assert load_parallel(source, ["yo"], "train") == {"yo": [YORUBA]}
    assert load_parallel(source, ["yo"], "train", normalize=None) == {"yo": [apart]}
    assert describe_source(source, "yo")["normalize"] == "NFC" == stream_texts(source, "yo").facts["normalize"]
    assert describe_source(source, "yo", None) != describe_source(source, "yo")


def test_one_text_in_two_forms_is_one_document_in_one_split(tmp_path):
    texts = [f"ọ̀rọ̀ {i}" for i in range(50)]
    both = [unicodedata.normalize(form, text) for form in ("NFC", "NFD") for text in texts]
    source = str(written(tmp_path / "mixed.txt", "\n".join(both)))
    composed = [text for split in SPLITS for text in load_texts(source, "yo", split)]
    assert sorted(composed) == sorted(unicodedata.normalize("NFC", text) for text in texts)


def test_corpora_are_composed_too(tmp_path, monkeypatch):
    apart = unicodedata.normalize("NFD", YORUBA)
    sib200 = f"sib200:{hub_layouts.sib200(tmp_path / 'sib200', [('travel', apart)])}"
    glotcc = hub_layouts.glotcc(tmp_path / "glotcc", [f"{apart} {i}" for i in range(30)])
    page = hub_layouts.declaration(tmp_path / "udhr", {"yor": [[apart]] * 31})
    (tmp_path / "messages" / "i18n").mkdir(parents=True)
    messages = {f"k{i}": f"{apart} {i}" for i in range(30)}
    (tmp_path / "messages" / "i18n" / "yo.json").write_text(json.dumps(messages))
    for source in (sib200, glotcc, f"udhr:{page}", f"mediawiki:{tmp_path / 'messages'}"):
        assert YORUBA in load_texts(source, "yo", "train", max_bytes=10**6)[0]
        assert apart in load_texts(source, "yo", "train", max_bytes=10**6, normalize=None)[0]
    assert all(YORUBA in text for text in stream_texts(glotcc, "yo"))


# --- codes ---


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        *[(name, "yo") for name in ("yo", "YO", "yor", "yor_Latn", "yor-Latn", "yo-NG", "Yoruba", "yorùbá", " yo ")],
        *[(name, "nb") for name in ("no", "nb", "nob", "nor", "nob_Latn", "nb-NO", "Norwegian Bokmål")],
        *[(name, "et") for name in ("et", "est", "ekk", "est_Latn", "ekk_Latn")],
        *[(name, "zh") for name in ("zh", "zho", "cmn", "zh-CN", "zh_Hans", "zho_Hans", "chi")],
        *[(name, "sr") for name in ("sr", "srp", "sr-Cyrl", "sr_RS", "srp_Cyrl")],
        ("pt-BR", "pt"),
        ("fil", "tl"),
        ("lav", "lv"),
        ("iw", "he"),
        ("sq", "als"),
        ("nan", "nan"),
    ],
)
def test_codes_as_people_write_them(asked, code):
    assert get_language(asked).code == code
    assert find_language(asked) is get_language(code)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("zh_Hant", "Chinese in the script Hant; here Chinese is in Hans. Use 'zh'"),
        ("zh-TW", "Chinese in the script Hant"),
        ("sr-Latn", "Serbian in the script Latn; here Serbian is in Cyrl. Use 'sr'"),
        ("sr-Latn-RS", "Serbian in the script Latn"),
        ("my_text", "Unknown language 'my_text'"),
        ("", "Unknown language ''"),
        (False, "Unknown language False"),
    ],
)
def test_other_codes_are_refused_in_a_sentence(asked, said):
    with pytest.raises(InvalidInput, match=said):
        get_language(asked)
    assert find_language(asked) is None


def test_every_code_of_the_table_is_found():
    for language in LANGUAGES:
        for name in (language.code, language.iso639_3, language.code_for("sib200"), language.code_for("fineweb2")):
            assert find_language(name) is language, name
