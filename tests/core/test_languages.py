"""The language table and its codes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssetools import cli, languages
from ssetools.languages import (
    CONTRAST_LANGUAGES,
    LANGUAGES,
    PAPER_LANGUAGES,
    TARGET_LANGUAGES,
    get_language,
)
from ssetools.text.sources import SPLITS, languages_in, load_texts


def test_groups_are_in_the_table_and_codes_are_distinct():
    codes = [language.code for language in LANGUAGES]
    by_hand = len(TARGET_LANGUAGES) + len(CONTRAST_LANGUAGES)
    assert set(TARGET_LANGUAGES) | set(CONTRAST_LANGUAGES) == set(codes[:by_hand])
    assert len(codes) == len(set(codes)) == 420
    assert " ".join(PAPER_LANGUAGES) == "mt af is cy mk lv lt sl sk et ka ne", "the order of the paper's mask files"


@pytest.mark.parametrize(
    ("lang", "corpus", "code"),
    [
        ("et", "sib200", "est_Latn"),
        ("et", "glotcc", "ekk-Latn"),
        ("et", "flores_plus", "ekk_Latn"),
        ("lv", "flores", "lvs_Latn"),
        ("lv", "udhr", "lav"),
        ("ne", "belebele", "npi_Deva"),
        ("ne", "udhr", "nep"),
        ("zh", "sib200", "zho_Hans"),
        ("yo", "mediawiki", "yo"),
        ("mt", "wikipedia", "20231101.mt"),
        ("gd", "sib200", "gla_Latn"),
        ("gd", "udhr", "gla"),
        ("de", "udhr", "deu_1996"),
        ("el", "udhr", "ell_monotonic"),
        ("sr", "mediawiki", "sr-ec"),
        ("ko", "fineweb2", "kor_Hang"),
        ("gd", "glotcc", "gla-Latn"),
    ],
)
def test_corpus_codes(lang, corpus, code):
    assert get_language(lang).code_for(corpus) == code


@pytest.mark.parametrize(("asked", "hint"), [("yorba", "'yo' (Yoruba)"), ("Icelandish", "'is'")])
def test_unknown_language_names_the_nearest_codes(asked, hint):
    with pytest.raises(ValueError, match="Unknown language") as caught:
        get_language(asked)
    assert hint in str(caught.value)
    assert "mt af is" in str(caught.value)


def test_every_language_is_complete_and_of_one_family():
    for x in LANGUAGES:
        assert all((x.code, x.iso639_3, x.name, x.own_name, x.script, x.family, x.lineage)), x
        assert len(x.iso639_3) == 3
        assert len(x.code) in (2, 3)
        assert len(x.script) == 4
        assert "udhr" in x.corpora
    assert len({x.iso639_3 for x in LANGUAGES}) == len(LANGUAGES), "one language is one ISO 639-3 code"
    assert get_language("gd").lineage[0] == get_language("de").lineage[0] == "Indo-European"
    assert get_language("gd").family == get_language("cy").family == "Celtic"


def test_a_corpus_is_known_to_hold_a_language_or_not():
    assert {"flores", "sib200"} <= set(get_language("cy").corpora)
    assert "belebele" not in get_language("cy").corpora
    assert "flores" not in get_language("br").corpora
    assert get_language("yo").wikipedia_articles > 10_000
    assert get_language("yo").own_name == "Yorùbá", "without the word for language"


def test_languages_in_a_source():
    assert len(languages_in("udhr")) == len(languages_in("/my/text")) == 420
    assert "br" not in languages_in("sib200:/some/folder")
    both = languages_in("udhr+mediawiki")
    assert "yo" in both
    assert "acu" not in both


def test_the_data_file_names_its_sources_and_their_licences():
    data = json.loads((Path(languages.__file__).parent / "data" / "languages.json").read_text(encoding="utf-8"))
    assert data["licence"] == "CC BY-SA 4.0"
    assert all(source["licence"] for source in data["sources"])


@pytest.mark.slow
@pytest.mark.network
def test_every_language_has_a_complete_text():
    for x in LANGUAGES:
        assert [len(load_texts("udhr", x.code, split)) for split in SPLITS] == [19, 3, 9], x.code


def test_the_command_line_takes_languages(monkeypatch, capsys):
    asked = {}

    def get_profile(model, tokenizer, runs, **options):
        asked.update(options)
        return SimpleNamespace(languages=["yo"], tokens=[1])

    monkeypatch.setattr("ssetools.steps.get_profile", get_profile)
    monkeypatch.setattr("ssetools.cli._load", lambda arguments, load_in_8bit: (None, None))
    assert cli.main(["profile", "--source", "sib200", "--languages", "all", "--tokens", "9"]) == 0
    assert (asked["source"], asked["tokens_per_language"]) == ("sib200", 9)
    assert len(asked["languages"]) == len(languages_in("sib200")) > 150
    assert cli.main(["profile", "--languages", "yo is"]) == 0
    assert asked["languages"] == ["yo", "is"]
    assert cli.main(["profile", "--languages", "yo xx"]) == 2
    assert "Unknown language 'xx'" in capsys.readouterr().err
