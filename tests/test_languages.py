"""The language table and its codes."""

import pytest

from ssetools.languages import CONTRAST_LANGUAGES, LANGUAGES, PAPER_LANGUAGES, TARGET_LANGUAGES, get_language


def test_groups_are_in_the_table_and_codes_are_distinct():
    codes = [language.code for language in LANGUAGES]
    assert set(TARGET_LANGUAGES) | set(CONTRAST_LANGUAGES) == set(codes)
    assert len(codes) == len(set(codes))
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
    ],
)
def test_corpus_codes(lang, corpus, code):
    assert get_language(lang).code_for(corpus) == code


@pytest.mark.parametrize(("asked", "hint"), [("yoruba", "'yo' (Yoruba)"), ("yor", "'yo' (Yoruba)"), ("isl", "'is'")])
def test_unknown_language_names_the_nearest_codes(asked, hint):
    with pytest.raises(ValueError, match="Unknown language") as caught:
        get_language(asked)
    assert hint in str(caught.value)
    assert "mt af is" in str(caught.value)
