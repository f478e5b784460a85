"""Corpora of the hub, read from folders in its layout: codes, columns, splits, what is missing and why."""

import hub_layouts
import pytest

from ssetools.errors import InvalidInput, TextUnavailable
from ssetools.languages import get_language
from ssetools.text import hub as hub_corpora
from ssetools.text.hub import HUB_CORPORA, HubText, hub_reachable
from ssetools.text.sources import describe_source, load_parallel, load_texts

DOCUMENTS = [f"oju ewe {i} ti a ko" for i in range(90)]
SENTENCES = {"yor_Latn": ["gbolohun 0", "gbolohun 1"], "eng_Latn": ["sentence 0", "sentence 1"]}


@pytest.mark.parametrize("layout", ["glotcc", "wikipedia"])
def test_text_without_splits_holds_some_of_its_head_out(tmp_path, layout, monkeypatch):
    monkeypatch.setattr(hub_corpora, "HEAD", 60)
    source = getattr(hub_layouts, layout)(tmp_path, DOCUMENTS)
    parts = [load_texts(source, "yo", split, max_bytes=10**6) for split in ("train", "validation", "test")]
    assert sorted(text for part in parts for text in part) == sorted(DOCUMENTS), "none lost, none in two splits"
    assert all(parts)
    assert set(DOCUMENTS[60:]) <= set(parts[0]), "text behind the head trains"


def test_a_split_of_its_own_is_used_and_removed_documents_are_not(tmp_path):
    source = hub_layouts.fineweb2(tmp_path, DOCUMENTS, ["test 0", "test 1"])
    assert load_texts(source, "yo", "test") == ["test 0", "test 1"]
    train, validation = (load_texts(source, "yo", split, max_bytes=10**6) for split in ("train", "validation"))
    assert not {"removed", "test 0"} & {*train, *validation}
    assert len(validation) < 20 < len(train) < 90


def test_a_local_copy_is_read_by_its_files_whatever_configurations_it_names(tmp_path):
    source = hub_layouts.glotcc(tmp_path, DOCUMENTS)
    alone = [text for shard in HubText("glotcc", str(tmp_path), get_language("yo")).shards() for text in shard(0)]
    hub_layouts.readme(tmp_path, {"yor-Latn": {"train": "v1.0/yor-Latn/*.parquet"}})
    named = [text for shard in HubText("glotcc", str(tmp_path), get_language("yo")).shards() for text in shard(0)]
    assert named == alone == DOCUMENTS
    with pytest.raises(ValueError, match=r"GlotCC has no text in Maltese \(.* has no v1.0/mlt-Latn/\*.parquet\)"):
        load_texts(source, "mt", "test")


def test_skipping_continues_a_file(tmp_path):
    hub_layouts.glotcc(tmp_path, ["a", "", "c", "d"], files=1)
    (shard,) = HubText("glotcc", str(tmp_path), get_language("yo")).shards()
    assert list(shard(0)) == ["a", "", "c", "d"]
    assert list(shard(2)) == ["c", "d"]
    assert list(shard(4)) == []


def test_all_training_text_at_once_is_refused_with_the_way_out(tmp_path):
    source = hub_layouts.glotcc(tmp_path, DOCUMENTS)
    with pytest.raises(ValueError, match=r"stream_texts.*max_bytes"):
        load_texts(source, "yo", "train")
    with pytest.raises(ValueError, match="not a streamed one"):
        load_parallel(source, ["yo", "en"], "train")
    part = load_texts(source, "yo", "train", max_bytes=100)
    assert sum(len(text) for text in part[:-1]) < 100 <= sum(len(text) for text in part)


@pytest.mark.parametrize("layout", ["flores", "flores_plus"])
def test_flores_is_parallel_and_for_measuring_only(tmp_path, layout):
    source = getattr(hub_layouts, layout)(tmp_path, SENTENCES)
    found = load_parallel(source, ["en", "yo"], "test")
    assert found == {
        "en": ["sentence 0 devtest", "sentence 1 devtest"],
        "yo": ["gbolohun 0 devtest", "gbolohun 1 devtest"],
    }
    assert "dev" in load_texts(source, "yo", "validation")[0]
    with pytest.raises(ValueError, match=r"has no train text: it is for scoring \(validation, test\)"):
        load_texts(source, "yo", "train")
    with pytest.raises(ValueError, match="has no text in Maltese"):
        load_texts(source, "mt", "test")


def test_a_copy_that_changed_is_read_anew(tmp_path):
    source = hub_layouts.flores(tmp_path, SENTENCES)
    assert load_texts(source, "yo", "test")[0] == "gbolohun 0 devtest"
    hub_layouts.flores(tmp_path, {code: ["other"] for code in SENTENCES})
    assert load_texts(source, "yo", "test") == ["other devtest"]


def test_codes_follow_each_corpus():
    codes = {name: get_language("et").code_for(name) for name in HUB_CORPORA}
    assert codes == {
        "sib200": "est_Latn",
        "flores": "est_Latn",
        "flores_plus": "ekk_Latn",
        "glotcc": "ekk-Latn",
        "fineweb2": "ekk_Latn",
        "wikipedia": "20231101.et",
    }
    assert HubText("fineweb2", "", get_language("en")).corpus.repository == "HuggingFaceFW/fineweb"


class Recorded:
    """Stands for `datasets.load_dataset`: keeps what it is asked for, and refuses as the hub would."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), []

    def __call__(self, *args, **options):
        self.calls.append((args, options))
        raise self.errors.pop(0)


def test_the_hub_is_asked_for_a_configuration(monkeypatch):
    ask = Recorded(ValueError("BuilderConfig 'yor-Latn' not found. Available: ['default']"))
    monkeypatch.setattr("datasets.load_dataset", ask)
    monkeypatch.setattr(hub_corpora, "hub_reachable", lambda: True)
    with pytest.raises(ValueError, match=r"GlotCC has no text in Yoruba \(there is no yor-Latn\)"):
        load_texts("glotcc", "yo", "test")
    ((place, options),) = ask.calls
    assert place == ("cis-lmu/GlotCC-V1",)
    assert options == {
        "name": "yor-Latn",
        "split": "train",
        "streaming": True,
        "batch_size": 200,
        "columns": ["content"],
    }


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        (
            "flores_plus",
            r"Accept its terms .*datasets/openlanguagedata/flores_plus\) and set HF_TOKEN, or name a local",
        ),
        ("wikipedia", 'Allow access to the Hugging Face hub, or name a local copy in its layout: "wikipedia:FOLDER"'),
    ],
)
def test_a_set_that_cannot_be_had_names_reason_and_remedy(monkeypatch, source, remedy):
    from datasets.exceptions import DatasetNotFoundError

    monkeypatch.setattr("datasets.load_dataset", Recorded(DatasetNotFoundError("is a gated dataset on the Hub.\nmore")))
    monkeypatch.setattr(hub_corpora, "hub_reachable", lambda: True)
    with pytest.raises(TextUnavailable, match=f"is a gated dataset on the Hub. {remedy}"):
        load_texts(source, "yo", "test")


def test_a_stream_that_breaks_says_how_to_go_on(monkeypatch):
    import datasets

    def rows():
        yield from ({"text": text} for text in DOCUMENTS[:4])
        raise ConnectionError("connection reset")

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows))
    monkeypatch.setattr(hub_corpora, "hub_reachable", lambda: True)
    (shard,) = HubText("wikipedia", "", get_language("yo")).shards()
    with pytest.raises(
        TextUnavailable, match=r"after 4 documents of file 1 of 1: connection reset\. Run again, .*resumes"
    ):
        list(shard(0))


def test_a_damaged_file_of_a_local_copy_is_named_with_the_place(tmp_path):
    hub_layouts.glotcc(tmp_path, DOCUMENTS, files=2)
    shards = HubText("glotcc", str(tmp_path), get_language("yo")).shards()
    (tmp_path / "v1.0/yor-Latn/yor-Latn_1.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(
        InvalidInput, match=r"after 0 documents of file 2 of 2 .*yor-Latn/\*.parquet.*Copy the files again"
    ):
        list(shards[1](0))


def test_a_local_copy_is_identified_by_its_files(tmp_path):
    source = hub_layouts.glotcc(tmp_path, DOCUMENTS)
    before = describe_source(source, "yo")
    assert before == describe_source(source, "yo")
    hub_layouts.glotcc(tmp_path, DOCUMENTS[:-1])
    assert before != describe_source(source, "yo")


def test_a_proxy_is_asked_for_the_hub(monkeypatch):
    def unknown(*_):
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("ssetools.text.hub.getproxies", lambda: {"https": "http://proxy:3128"})
    assert hub_reachable.__wrapped__()
    monkeypatch.setattr("ssetools.text.hub.getproxies", lambda: {})
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    assert not hub_reachable.__wrapped__()
