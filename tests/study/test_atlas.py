"""The atlas: counts by shard, the packaged neuron sets, comparisons, and statistics on cases with known results."""

import unicodedata

import families
import numpy
import pytest
import torch

from ssetools import NeuronSets, compare_neurons, load_atlas, profile_languages
from ssetools.neurons.sets import atlas_path
from study.atlas import statistics
from study.atlas.make import RESULTS, languages_of
from study.atlas.shards import ShardedProfile, atlas_texts, load_results, load_shards, profile_atlas

LANGS = ["yo", "is", "en", "ka"]


def words(lang, count=40):
    start = 3 + 20 * LANGS.index(lang)
    return [" ".join(f"w{start + (7 * i + k) % 30 % 90}" for k in range(11)) for i in range(count)]


@pytest.fixture
def text(monkeypatch):
    monkeypatch.setattr(
        "study.atlas.shards.load_texts", lambda source, lang, split: words(lang) if split == "train" else []
    )


@pytest.fixture
def counts():
    """Counts of twelve languages in three groups of neurons that fire for one family each, plus noise."""
    generator = torch.Generator().manual_seed(0)
    families = torch.arange(12) // 4
    shares = torch.full((12, 1, 4, 120), 0.02)
    for k, family in enumerate(families.tolist()):
        shares[k, :, family, :16] = 0.9
        shares[k, :, 3, 10 * k : 10 * k + 4] = 0.8
    drawn = torch.binomial(torch.full((12, 8, 4, 120), 50.0), shares.expand(-1, 8, -1, -1), generator=generator)
    return ShardedProfile(drawn.to(torch.uint8), [f"l{k}" for k in range(12)], 50)


def test_counts_by_shard_add_up_to_the_profile(text, word_tokenizer, tmp_path):
    model = families.tiny_model("llama")
    assert profile_atlas(model, word_tokenizer, LANGS, tmp_path, shards=4, shard_tokens=20) == []
    counts = load_shards(tmp_path, LANGS)
    assert counts.counts.shape == (4, 4, 2, 48)
    assert counts.counts.dtype == torch.uint8
    texts = {lang: words(lang) for lang in LANGS}
    whole = profile_languages(model, word_tokenizer, texts, tokens_per_language=80, window=21)
    assert torch.equal(counts.profile().counts, whole.counts)
    assert torch.equal(counts.profile().tokens, whole.tokens)
    halves = next(counts.halves(1, 2))
    assert torch.equal((halves[0] + halves[1]).counts, whole.counts)
    with pytest.raises(ValueError, match="need 6 shards; there are 4"):
        next(counts.halves(1, 3))


def test_an_interrupted_count_is_resumed(text, word_tokenizer, tmp_path, monkeypatch):
    model = families.tiny_model("llama")
    remaining = profile_atlas(model, word_tokenizer, LANGS, tmp_path, shards=4, shard_tokens=20, seconds=-1)
    assert remaining == LANGS
    profile_atlas(model, word_tokenizer, LANGS[:2], tmp_path, shards=4, shard_tokens=20)
    asked = []
    monkeypatch.setattr("study.atlas.shards.atlas_texts", lambda source, lang: asked.append(lang) or words(lang))
    profile_atlas(model, word_tokenizer, LANGS, tmp_path, shards=4, shard_tokens=20)
    assert asked == LANGS[2:], "languages that are counted are not counted again"


def test_the_sample_of_messages_is_composed_as_all_text_is(monkeypatch):
    text = "ọjọ́ kan ni ìjàpá lọ sí ọjà"
    messages = {"yo": {"a": unicodedata.normalize("NFD", text)}, "en": {"a": "one day"}}
    monkeypatch.setattr("study.atlas.shards.interface_messages", messages.get)
    assert atlas_texts("mediawiki", "yo") == [unicodedata.normalize("NFC", text)]


def test_counts_of_another_model_are_refused(text, word_tokenizer, tmp_path):
    model = families.tiny_model("llama")
    profile_atlas(model, word_tokenizer, LANGS, tmp_path, shards=4, shard_tokens=20)
    model.ssetools_source = {"model": "another", "revision": None, "load_in_8bit": False}
    with pytest.raises(ValueError, match="model: 'LlamaForCausalLM', wanted 'another'"):
        profile_atlas(model, word_tokenizer, LANGS, tmp_path, shards=4, shard_tokens=20)


def test_too_little_text_and_inconsistent_files_are_refused(text, word_tokenizer, tmp_path):
    model = families.tiny_model("llama")
    with pytest.raises(ValueError, match="'yo' has .* windows of 100 tokens; 8 are needed"):
        profile_atlas(model, word_tokenizer, ["yo"], tmp_path, shard_tokens=100)
    profile_atlas(model, word_tokenizer, ["yo"], tmp_path, shards=4, shard_tokens=20)
    profile_atlas(model, word_tokenizer, ["is"], tmp_path, shards=3, shard_tokens=20)
    with pytest.raises(ValueError, match="shard_tokens is 256; a byte counts at most 255"):
        profile_atlas(model, word_tokenizer, ["en"], tmp_path, shards=1, shard_tokens=256)
    with pytest.raises(ValueError, match="is.safetensors was made with"):
        load_shards(tmp_path, ["yo", "is"])


def test_shards_may_repeat_and_differ_by_language(counts):
    picks = torch.zeros(12, 8, dtype=torch.long)
    picks[3] = 5
    drawn = counts.profile(picks)
    assert drawn.tokens.tolist() == [400] * 12
    assert torch.equal(drawn.counts[0], 8 * counts.counts[0, 0].long())
    assert torch.equal(drawn.counts[3], 8 * counts.counts[3, 5].long())


# Before the first `make atlas` the package has no atlas.
shipped = pytest.mark.skipif(not atlas_path("gemma-3-270m", 0.05).is_file(), reason="run `make atlas` first")


@shipped
@pytest.mark.parametrize("top_rate", [0.01, 0.05])
def test_the_packaged_atlas_has_every_language_of_the_declaration(top_rate):
    sets = load_atlas("gemma-3-270m", top_rate)
    assert sets.languages == languages_of("udhr", "all")
    assert sets.metadata["profiled_languages"] == sets.languages
    assert (sets.num_layers, sets.num_neurons) == (18, 2048)
    assert sets.metadata["top_rate"] == top_rate
    facts = load_results(RESULTS)["languages"]["languages"]
    assert {code: sets.count(code) for code in sets} == {
        code: x["neurons"][f"{100 * top_rate:g}"] for code, x in facts.items()
    }
    assert atlas_path("gemma-3-270m", top_rate).stat().st_size < 1_000_000


@shipped
def test_the_map_and_the_family_tests_are_those_of_the_packaged_atlas():
    results = load_results(RESULTS)
    sets = load_atlas("gemma-3-270m", 0.05)
    coordinates, share = statistics.classical_scaling(statistics.jaccard_distances(sets))
    assert results["languages"]["map_share"] == pytest.approx(share, abs=1e-4)
    committed = [results["languages"]["languages"][code]["map"] for code in sets]
    numpy.testing.assert_allclose(committed, coordinates, atol=1e-4)
    codes = [code for code in sets if sets.count(code)]
    rows = [sets.languages.index(code) for code in codes]
    overlap = statistics.jaccard_distances(sets)[numpy.ix_(rows, rows)]
    found = statistics.mantel_test(overlap, statistics.family_distances(codes), permutations=9)
    assert results["families"]["5"]["all languages"]["overlap and genealogy"]["r"] == found["r"]


@shipped
def test_an_atlas_that_is_not_packaged_is_an_error():
    with pytest.raises(ValueError, match=r"No atlas of 'gpt-9'.*gemma-3-270m-5"):
        load_atlas("gpt-9")


def test_comparison_by_language_and_layer(tmp_path):
    first = NeuronSets({"a": [[0, 1, 2], []], "b": [[3], [4, 5]]}, 10)
    second = NeuronSets({"x": [[1, 2, 3], []], "b": [[3], [5, 6]]}, 10)
    table = compare_neurons(first, second, {"a": "x", "b": "b"}).set_index(["language", "layer"])
    assert table.loc["a", 0].jaccard == pytest.approx(0.5)
    assert numpy.isnan(table.loc["a", 1].jaccard)
    assert table.loc["b", "all"].tolist() == [3, 3, 2, 0.5]
    again = NeuronSets.from_reference(first.to_reference(tmp_path / "a.pth"), ["a", "b"], 10)
    assert (compare_neurons(first, again).query("layer == 'all'").jaccard == 1).all()
    with pytest.raises(ValueError, match="not the same model"):
        compare_neurons(first, NeuronSets({"a": [[1]]}, 10))
    with pytest.raises(ValueError, match="No language is in both"):
        compare_neurons(first, NeuronSets({"z": [[1], [2]]}, 10))


def test_stable_sets_are_stable_and_noise_is_not(counts):
    found = statistics.split_half_stability(counts, 0.2, splits=3)
    assert list(found) == ["50", "100", "200"]
    assert found["200"]["mean"]["jaccard"] > 0.9
    for part in found.values():
        assert part["mean"]["low"] <= part["mean"]["jaccard"] <= part["mean"]["high"]
    noise = ShardedProfile(torch.randint(0, 20, (6, 8, 4, 120)).to(torch.uint8), list("abcdef"), 50)
    assert statistics.split_half_stability(noise, 0.05, splits=3)["50"]["mean"]["jaccard"] < 0.5


def test_the_mean_stability_is_the_mean_over_splits_of_the_mean_over_languages(monkeypatch, counts):
    few = ShardedProfile(counts.counts[:2, :2], counts.languages[:2], 50)
    drawn = iter([[0.9, numpy.nan], [0.8, numpy.nan], [0.7, 0.0]])
    monkeypatch.setattr(statistics, "jaccard_by_language", lambda *sets: numpy.array(next(drawn)))
    found = statistics.split_half_stability(few, 0.2, splits=3)["50"]
    assert found["l0"]["jaccard"] == pytest.approx(0.8)
    assert found["l1"]["jaccard"] == 0
    assert found["mean"]["jaccard"] == pytest.approx((0.9 + 0.8 + 0.35) / 3, abs=1e-4)


def test_selections_of_few_and_many_languages(counts):
    groups = {"4": counts.languages[::3], "12": counts.languages}
    found = statistics.overlap_between_selections(counts, groups, 0.2, resamples=4)["4/12"]
    assert set(found) == {*groups["4"], "mean"}
    assert 0 < found["l0"]["low"] <= found["l0"]["high"] <= 1
    same = statistics.overlap_between_selections(counts, dict.fromkeys("ab", counts.languages), 0.2, resamples=2)
    assert same["a/b"]["mean"] == {"jaccard": 1.0, "low": 1.0, "high": 1.0}


def test_agreement_across_genres_is_compared_with_its_ceiling(counts):
    other = ShardedProfile(counts.counts.flip(2), counts.languages, 50)
    found = statistics.agreement_across_genres(counts, other, 0.2, splits=3)["mean"]
    assert found["across"] < found["within_first"]
    assert found["low"] <= found["share"] <= found["high"] < 1
    same = statistics.agreement_across_genres(counts, counts, 0.2, splits=3)["mean"]
    assert same["within_first"] == same["within_second"]


def test_the_interval_of_the_share_is_over_languages():
    equal = statistics.share_of_ceiling([0.8] * 6, [0.2] * 6, [0.3] * 6)
    assert (equal["share"], equal["low"], equal["high"]) == (0.75, 0.75, 0.75)
    ceiling, across = [0.8, 0.6, numpy.nan, 0.7, 0.9, 0.5, 0.8], [0.4, 0.1, 0.9, 0.3, 0.8, 0.4, 0.2]
    mixed = statistics.share_of_ceiling(ceiling, ceiling, across)
    assert mixed["share"] == pytest.approx(
        numpy.mean([0.4, 0.1, 0.3, 0.8, 0.4, 0.2]) / numpy.mean([8, 6, 7, 9, 5, 8]) * 10, abs=1e-4
    )
    assert mixed["low"] < mixed["share"] - 0.05
    assert mixed["high"] > mixed["share"] + 0.05


def test_average_linkage_of_a_known_case():
    points = numpy.array([0.0, 1.0, 2.5, 10.0])
    linkage = statistics.average_linkage(abs(points[:, None] - points))
    numpy.testing.assert_allclose(linkage[:, 2:], [[1, 2], [2, 3], [26.5 / 3, 4]])
    heights = statistics.cophenetic_distances(linkage)
    assert heights[0, 1] == 1
    assert heights[0, 2] == heights[1, 2] == 2
    assert heights[3, 0] == heights[2, 3] == pytest.approx(26.5 / 3)
    assert heights.trace() == 0


def test_classical_scaling_recovers_the_distances_of_a_plane():
    places = numpy.random.default_rng(0).normal(size=(9, 2))
    table = numpy.linalg.norm(places[:, None] - places, axis=2)
    coordinates, share = statistics.classical_scaling(table)
    assert share == pytest.approx(1)
    numpy.testing.assert_allclose(numpy.linalg.norm(coordinates[:, None] - coordinates, axis=2), table, atol=1e-9)
    assert statistics.classical_scaling(table, 1)[1] == pytest.approx(
        (coordinates[:, 0] ** 2).sum() / (coordinates**2).sum()
    )


def test_distances_between_languages_by_family():
    row = statistics.family_distances(["sk", "sl", "de", "ka"])[0].tolist()
    assert row[0] == 0 < row[1] < row[2] < row[3] == 1, "nearest is Slovenian, then German; Georgian is unrelated"


def test_permutation_tests_detect_groups_and_nothing_else(counts):
    labels, shuffled = [str(k // 4) for k in range(12)], [*"abc"] * 4
    table = statistics.jaccard_distances(statistics.select_neurons(counts.profile(), 0.2))
    found = statistics.silhouette_test(table, labels, permutations=99)
    assert found["silhouette"] > 0.5
    assert found["p"] == 0.01, "the observed order counts as one permutation"
    assert statistics.silhouette_test(table, shuffled, permutations=99)["p"] > 0.05
    found = statistics.mantel_test(table, statistics.label_distances(labels), permutations=99)
    assert found["r"] > 0.9
    assert found["p"] == 0.01
    assert statistics.mantel_test(table, statistics.label_distances(shuffled), permutations=99)["p"] > 0.05


def test_labels_of_fewer_than_three_points_are_left_out_of_a_silhouette():
    places = numpy.array([0, 1, 2, 10, 11, 12, 5, 6], dtype=float)
    found = statistics.silhouette_test(abs(places[:, None] - places), [*"aaabbbcc"], permutations=9)
    assert (found["points"], found["labels"]) == (6, 2)
    assert found["silhouette"] == pytest.approx(0.8625, abs=0.01)


def test_the_partial_mantel_test_removes_the_effect_of_a_third_matrix():
    rng = numpy.random.default_rng(0)
    first, second, control = (statistics.label_distances(rng.integers(3, size=30)) for _ in range(3))
    mixed = first + control
    assert statistics.mantel_test(mixed, control, permutations=99)["p"] == 0.01
    assert statistics.mantel_test(mixed, second + control, permutations=99)["p"] == 0.01, "only through the control"
    assert statistics.mantel_test(mixed, second + control, control, permutations=99)["p"] > 0.05
    kept = statistics.mantel_test(mixed, first + control, control, permutations=99)
    assert kept["r"] == pytest.approx(1)
    assert kept["p"] == 0.01


def test_rank_correlation_with_interval_and_test():
    squares = [float(x * x) for x in range(1, 21)]
    found = statistics.spearman_test([*range(1, 21), None], [*squares, 2.0], resamples=99)
    assert (found["rho"], found["low"], found["high"]) == (1, 1, 1)
    assert found["languages"] == 20
    assert found["p"] == 0.02, "two-sided"
    tied = statistics.spearman_test([1, 1, 2, 2] * 5, [1, 2, 3, 4] * 5, resamples=99)
    assert tied["rho"] == pytest.approx(0.8944, abs=1e-4)
    noise = numpy.random.default_rng(0).normal(size=(2, 20))
    found = statistics.spearman_test(*noise.tolist(), resamples=99)
    assert found["low"] < 0 < found["high"]
    assert found["p"] > 0.05
