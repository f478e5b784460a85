"""Amplified neurons and the language of what the model writes."""

import families
import pytest

from ssetools import NeuronSets
from ssetools.neurons.ffn import find_ffn_blocks
from study.atlas import amplification
from study.atlas.amplification import amplification_effect, identification_accuracy, identify_languages


def test_languages_are_identified_and_babble_is_not():
    texts = [
        "Every person has the right to freedom of thought, conscience and religion.",
        "Gbogbo ènìyàn ni a bí ní òmìnira; iyì àti ẹ̀tọ́ kọ̀ọ̀kan sì dọ́gba.",
        "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
        "7",
    ]
    assert identify_languages(texts) == ["en", "yo", "ka", "und"]


@pytest.mark.parametrize(
    ("lang", "document"),
    [
        ("zh", "人人生而自由，在尊严和权利上一律平等。" * 20),
        ("th", "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ" * 6),
        ("en", "All human beings are born free and equal in dignity and rights. " * 6),
    ],
)
def test_the_identifier_is_measured_on_pieces_of_equal_length_in_every_script(monkeypatch, lang, document):
    monkeypatch.setattr(amplification, "load_texts", lambda *asked: [document])
    seen = []
    monkeypatch.setattr(amplification, "identify_languages", lambda x: seen.extend(x) or identify_languages(x))
    assert identification_accuracy(lang) == {"pieces": len(document) // 101, "accuracy": 1.0}
    assert all(80 < len(piece) <= 100 for piece in seen)


def test_amplification_compares_a_language_with_random_neurons(word_tokenizer, monkeypatch):
    monkeypatch.setattr(amplification, "load_texts", lambda *asked: ["Gbogbo ènìyàn ni a bí ní òmìnira. " * 6])
    model = families.tiny_model("llama")
    sets = NeuronSets({"yo": families.some_neurons(model)}, find_ffn_blocks(model)[0].num_neurons)
    options = {"factors": (1, 4), "prompts": ("w5", "w9 w7"), "samples": 3, "new_tokens": 4}
    written = []
    monkeypatch.setattr(
        amplification, "identify_languages", lambda x: written.append(x) or ["yo", "und", "und", *["yo"] * 9][: len(x)]
    )
    effect = amplification_effect(model, word_tokenizer, sets, "yo", **options)
    assert [len(texts) for texts in written[:4]] == [6] * 4
    assert written[0] == written[2] != written[1], "a factor of one is the model as it is"
    assert [(row["neurons"], row["factor"]) for row in effect["rows"]] == [
        ("yo", 1),
        ("yo", 4),
        ("random", 1),
        ("random", 4),
    ]
    row = effect["rows"][0]
    assert row["share"] == 4 / 6
    assert row["low"] < 4 / 6 < row["high"]
    assert row["identified"] == {"yo": 4, "und": 2}
