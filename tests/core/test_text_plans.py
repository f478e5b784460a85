"""Which text is for training and which for scoring: sources parsed once, an unseen genre where there is one."""

import hub_layouts
import pytest

from ssetools.errors import InvalidInput
from ssetools.text import embedded, hub
from ssetools.text.sources import Source, default_source, load_texts, parse_sources, plan_texts

SENTENCES = [("travel", "gbolohun kan"), ("health", "gbolohun meji")]


@pytest.fixture(autouse=True)
def _embedded_texts(monkeypatch):
    """Apt is at hand, and the embedded sources have text in every language."""
    monkeypatch.setattr(embedded, "has_apt", lambda: True)
    monkeypatch.setattr(embedded, "declaration_articles", lambda language, split, folder: {"a": "an article"})
    monkeypatch.setattr(embedded, "interface_messages", lambda language, split, folder: {"a": "a message"})


@pytest.fixture
def own(tmp_path):
    (tmp_path / "my stories").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "my stories" / f"{split}.txt").write_text(f"itan {split}")
    return str(tmp_path / "my stories")


@pytest.fixture
def sib200(tmp_path):
    return f"sib200:{hub_layouts.sib200(tmp_path / 'sib200', SENTENCES)}"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **options):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    monkeypatch.setattr("datasets.load_dataset", refuse)


def test_a_source_is_parsed_once_and_given_back(tmp_path, monkeypatch):
    web = Source("glotcc", "copy")
    assert (web.genre, web.streamed, web.multilingual) == ("web pages", True, False)
    assert parse_sources("udhr + glotcc:copy") == (Source("udhr"), web)
    assert "+".join(map(str, parse_sources("udhr + glotcc:copy+some/text"))) == "udhr+glotcc:copy+some/text"
    (own,) = parse_sources("some/text")
    assert (own.is_own, own.genre, own.multilingual) == (True, "text", False)
    for empty in ("", "udhr+", " + "):
        with pytest.raises(InvalidInput, match="A source of text is empty"):
            parse_sources(empty)
    for column in ("#text", "udhr+#", "# text"):
        with pytest.raises(InvalidInput, match="names a column and no file"):
            parse_sources(column)
    (tmp_path / "c++ manuals").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [str(x) for x in parse_sources("c++ manuals")] == ["c++ manuals"], "a path that exists is not split"


def test_with_sentences_all_other_text_trains(sib200, own):
    plan = plan_texts("auto", sib200, "yo")
    assert (plan.train, plan.same_genre, plan.unseen_genre) == (
        "udhr+mediawiki",
        ("articles", "messages"),
        "sentences",
    )
    plan = plan_texts(own, sib200, "yo")
    assert (plan.train, plan.same_genre, plan.unseen_genre) == (own, ("my stories",), "sentences")
    plan = plan_texts("sib200", sib200, "yo")
    assert (plan.same_genre, plan.unseen_genre) == (("sentences",), "articles"), "training text is not unseen"


def test_without_the_hub_an_embedded_source_is_the_unseen_genre(offline, own, monkeypatch):
    plan = plan_texts("auto", "sib200", "yo")
    assert (plan.train, plan.same_genre, plan.unseen_genre) == ("mediawiki", ("messages",), "articles")
    assert "no route to the hub" in plan.reason
    assert plan_texts(own, "sib200", "yo").unseen_genre == "articles"
    assert plan_texts("udhr", "sib200", "yo").unseen_genre == "messages"
    monkeypatch.setattr(embedded, "has_apt", lambda: False)
    plan = plan_texts("auto", "sib200", "yo")
    assert (plan.train, plan.unseen_genre) == ("udhr", None)
    assert "There is no text in an unseen genre" in plan.reason


def test_copies_of_one_corpus_leave_the_unseen_genre_unseen(offline, tmp_path):
    copies = "+".join(hub_layouts.glotcc(tmp_path / name, ["oju ewe"]) for name in "ABC")
    plan = plan_texts(copies, "sib200", "yo")
    third = f"web pages (glotcc:{tmp_path / 'C'})"
    assert (plan.same_genre, plan.unseen_genre) == (("web pages", "web pages (GlotCC)", third), "articles")
    assert "+".join(plan.genres[genre] for genre in plan.same_genre) == copies


def test_a_language_without_sentences_is_planned_without_them(monkeypatch, tmp_path, own):
    """Breton is not in SIB-200: known without asking the hub, so the network does not change what is trained on."""
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: pytest.fail("the hub was asked"))
    plan = plan_texts("auto", "sib200", "br")
    assert (plan.train, plan.unseen_genre) == ("mediawiki", "articles")
    assert "SIB-200 has no text in Breton" in plan.reason
    assert plan_texts(own, "sib200", "br").genres == {"my stories": own, "articles": "udhr"}
    for source in plan.genres.values():
        assert load_texts(source, "br", "test"), "all that is scored after training has text"


def test_a_local_copy_without_such_a_language_is_no_error(sib200):
    assert plan_texts("auto", sib200, "br").train == "mediawiki"


def test_a_language_without_messages_trains_on_the_declaration(sib200):
    assert default_source("acu") == "udhr"
    assert plan_texts("auto", "sib200", "acu").train == "udhr"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", r"test\.tsv.*Copy the files again"), (b"\xff\xfe\x00", r"test\.tsv"), (b"a\tb\n1\t2\n", r"test\.tsv")],
)
def test_a_damaged_local_copy_is_an_error_that_names_the_file(tmp_path, sib200, content, reason):
    (tmp_path / "sib200" / "data" / "yor_Latn" / "test.tsv").write_bytes(content)
    with pytest.raises(InvalidInput, match=reason):
        plan_texts("auto", sib200, "yo")


def test_a_missing_or_incomplete_local_copy_is_an_error(sib200, tmp_path):
    with pytest.raises(InvalidInput, match=r"data/isl_Latn/test\.tsv.*the copy is incomplete"):
        plan_texts("auto", sib200, "is")
    with pytest.raises(InvalidInput, match="names a folder that does not exist: nowhere"):
        plan_texts("auto", "sib200:nowhere", "yo")
    with pytest.raises(InvalidInput, match="use one of sib200, flores, flores_plus"):
        plan_texts("auto", str(tmp_path), "yo")


def test_text_without_a_needed_split_is_refused_before_training(own, sib200, tmp_path):
    (tmp_path / "my stories" / "test.txt").unlink()
    with pytest.raises(InvalidInput, match="has no test text"):
        plan_texts(own, sib200, "yo")
    with pytest.raises(InvalidInput, match="Unknown source 'some/folder'"):
        plan_texts("some/folder", sib200, "yo")


def test_sources_of_one_genre_are_scored_separately(tmp_path, own):
    sentences = hub_layouts.flores(tmp_path / "flores", {"yor_Latn": ["gbolohun"], "eng_Latn": ["sentence"]})
    plan = plan_texts(f"glotcc+fineweb2+wikipedia+{own}", sentences, "yo")
    assert plan.genres == {
        "web pages": "glotcc",
        "web pages (FineWeb-2)": "fineweb2",
        "encyclopedia": "wikipedia",
        "my stories": own,
        "sentences": sentences,
    }
    assert plan.unseen_genre == "sentences"
