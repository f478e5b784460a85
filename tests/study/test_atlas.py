"""The atlas: counts in shards, the files that ship, comparisons, and the statistics on cases with a known answer."""

import families
import numpy
import pytest
import torch

from ssetools import NeuronSets, compare_neurons, get_language, load_atlas, profile_languages
from ssetools.neurons.sets import atlas_path
from study.atlas import statistics
from study.atlas.shards import ShardedProfile, load_shards, profile_atlas

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
    with pytest.raises(ValueError, match="do not fit"):
        next(counts.halves(1, 3))


def test_a_stopped_count_goes_on(text, word_tokenizer, tmp_path, monkeypatch):
    model = families.tiny_model("llama")
    left = profile_atlas(model, word_tokenizer, LANGS, tmp_path, shards=4, shard_tokens=20, seconds=-1)
    assert left == LANGS
    profile_atlas(model, word_tokenizer, LANGS[:2], tmp_path, shards=4, shard_tokens=20)
    asked = []
    monkeypatch.setattr("study.atlas.shards.atlas_texts", lambda source, lang: asked.append(lang) or words(lang))
    profile_atlas(model, word_tokenizer, LANGS, tmp_path, shards=4, shard_tokens=20)
    assert asked == LANGS[2:], "what is counted is not counted again"


def test_counts_of_another_model_are_refused(text, word_tokenizer, tmp_path):
    model = families.tiny_model("llama")
    profile_atlas(model, word_tokenizer, LANGS, tmp_path, shards=4, shard_tokens=20)
    model.ssetools_source = {"model": "another", "revision": None, "load_in_8bit": False}
    with pytest.raises(ValueError, match=r"counted with other model LlamaForCausalLM \(now another\)"):
        profile_atlas(model, word_tokenizer, LANGS, tmp_path, shards=4, shard_tokens=20)


def test_too_little_text_and_mixed_files_are_named(text, word_tokenizer, tmp_path):
    model = families.tiny_model("llama")
    with pytest.raises(ValueError, match="'yo' has .* windows of 100 tokens, not 8"):
        profile_atlas(model, word_tokenizer, ["yo"], tmp_path, shard_tokens=100)
    profile_atlas(model, word_tokenizer, ["yo"], tmp_path, shards=4, shard_tokens=20)
    profile_atlas(model, word_tokenizer, ["is"], tmp_path, shards=3, shard_tokens=20)
    with pytest.raises(ValueError, match="at most 255 tokens"):
        profile_atlas(model, word_tokenizer, ["en"], tmp_path, shards=1, shard_tokens=256)
    with pytest.raises(ValueError, match="is.safetensors was made with"):
        load_shards(tmp_path, ["yo", "is"])


def test_a_shard_may_come_twice_and_differ_by_language(counts):
    picks = torch.zeros(12, 8, dtype=torch.long)
    picks[3] = 5
    drawn = counts.profile(picks)
    assert drawn.tokens.tolist() == [400] * 12
    assert torch.equal(drawn.counts[0], 8 * counts.counts[0, 0].long())
    assert torch.equal(drawn.counts[3], 8 * counts.counts[3, 5].long())


# Until `make atlas` has run for the first time, there is nothing to ship.
shipped = pytest.mark.skipif(not atlas_path("gemma-3-270m", 0.05).is_file(), reason="run `make atlas` first")


@shipped
@pytest.mark.parametrize("top_rate", [0.01, 0.05])
def test_the_atlas_ships(top_rate):
    sets = load_atlas("gemma-3-270m", top_rate)
    assert len(sets) >= 150
    assert sets.metadata["profiled_languages"] == sets.languages
    assert (sets.num_layers, sets.num_neurons) == (18, 2048)
    assert sets.metadata["top_rate"] == top_rate
    assert all(get_language(code).code == code for code in sets)
    assert sum(sets.count(code) > 0 for code in sets) > 100
    assert atlas_path("gemma-3-270m", top_rate).stat().st_size < 1_000_000


@shipped
def test_an_atlas_that_does_not_ship_is_named():
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
    found = statistics.split_half_stability(counts, 0.2, times=3)
    assert list(found) == ["50", "100", "200"]
    assert found["200"]["mean"]["jaccard"] > 0.9
    for part in found.values():
        assert part["mean"]["low"] <= part["mean"]["jaccard"] <= part["mean"]["high"]
    noise = ShardedProfile(torch.randint(0, 20, (6, 8, 4, 120)).to(torch.uint8), list("abcdef"), 50)
    assert statistics.split_half_stability(noise, 0.05, times=3)["50"]["mean"]["jaccard"] < 0.5


def test_a_language_with_neurons_in_one_split_does_not_weigh_as_much_as_one_with_neurons_in_all(monkeypatch, counts):
    few = ShardedProfile(counts.counts[:2, :2], counts.languages[:2], 50)
    drawn = iter([[0.9, numpy.nan], [0.8, numpy.nan], [0.7, 0.0]])
    monkeypatch.setattr(statistics, "jaccard", lambda *sets: numpy.array(next(drawn)))
    found = statistics.split_half_stability(few, 0.2, times=3)["50"]
    assert found["l0"]["jaccard"] == pytest.approx(0.8)
    assert found["l1"]["jaccard"] == 0
    assert found["mean"]["jaccard"] == pytest.approx((0.9 + 0.8 + 0.35) / 3, abs=1e-4)


def test_selections_of_few_and_many_languages(counts):
    groups = {"4": counts.languages[::3], "12": counts.languages}
    found = statistics.overlap_by_languages(counts, groups, 0.2, times=4)["4/12"]
    assert set(found) == {*groups["4"], "mean"}
    assert 0 < found["l0"]["low"] <= found["l0"]["high"] <= 1
    same = statistics.overlap_by_languages(counts, {"a": counts.languages, "b": counts.languages}, 0.2, times=2)
    assert same["a/b"]["mean"] == {"jaccard": 1.0, "low": 1.0, "high": 1.0}


def test_kinds_of_text_against_their_ceiling(counts):
    other = ShardedProfile(counts.counts.flip(2), counts.languages, 50)
    found = statistics.across_kinds(counts, other, 0.2, times=3)["mean"]
    assert found["across"] < found["within_first"]
    assert found["low"] <= found["share"] <= found["high"] < 1
    same = statistics.across_kinds(counts, counts, 0.2, times=3)["mean"]
    assert same["within_first"] == same["within_second"]


def test_average_linkage_of_a_known_case():
    points = numpy.array([0.0, 1.0, 2.5, 10.0])
    merges = statistics.average_linkage(abs(points[:, None] - points))
    numpy.testing.assert_allclose(merges, [[0, 1, 1, 2], [2, 4, 2, 3], [3, 5, 26.5 / 3, 4]])
    heights = statistics.cophenetic(merges)
    assert heights[0, 1] == 1
    assert heights[0, 2] == heights[1, 2] == 2
    assert heights[3, 0] == heights[2, 3] == pytest.approx(26.5 / 3)
    assert statistics.leaf_order(merges) == [3, 2, 0, 1]


def test_the_map_keeps_distances_of_a_plane():
    places = numpy.random.default_rng(0).normal(size=(9, 2))
    table = numpy.linalg.norm(places[:, None] - places, axis=2)
    found, share = statistics.classical_map(table)
    assert share == pytest.approx(1)
    numpy.testing.assert_allclose(numpy.linalg.norm(found[:, None] - found, axis=2), table, atol=1e-9)


def test_families_and_their_tests(counts):
    assert statistics.family_distances(["sk", "sl", "de", "ka"])[0].tolist() == sorted(
        statistics.family_distances(["sk", "sl", "de", "ka"])[0]
    ), "Slovenian is nearer to Slovak than German, and Georgian is not related"
    assert statistics.family_distances(["sk", "ka"])[0, 1] == 1
    labels = [str(k // 4) for k in range(12)]
    table = statistics.distances(statistics.select_neurons(counts.profile(), 0.2))
    found = statistics.silhouette(table, labels, times=99)
    assert found["silhouette"] > 0.5
    assert found["p"] == 0.01
    assert statistics.silhouette(table, [*"abc"] * 4, times=99)["p"] > 0.05
    followed = statistics.matrix_correlation(table, statistics.label_distances(labels), times=99)
    assert followed["r"] > 0.9
    assert followed["p"] == 0.01, "the table itself counts as one shuffling"
    shuffled = statistics.label_distances([*"abc"] * 4)
    assert statistics.matrix_correlation(table, shuffled, times=99)["p"] > 0.05


def test_what_a_third_table_explains_is_taken_out():
    rng = numpy.random.default_rng(0)
    first, second, given = (statistics.label_distances(rng.integers(3, size=30)) for _ in range(3))
    mixed = first + given
    plain = statistics.matrix_correlation(mixed, given, times=99)
    assert plain["p"] == 0.01
    assert statistics.matrix_correlation(mixed, second + given, times=99)["p"] == 0.01, "only because of the third"
    assert statistics.matrix_correlation(mixed, second + given, given, times=99)["p"] > 0.05
    kept = statistics.matrix_correlation(mixed, first + given, given, times=99)
    assert kept["r"] == pytest.approx(1)
    assert kept["p"] == 0.01


def test_rank_correlation():
    found = statistics.rank_correlation([1, 2, 3, 4, 5, 6, None], [1, 4, 9, 16, 25, 36, 2], times=50)
    assert found["rho"] == 1
    assert found["languages"] == 6
    assert found["p"] < 0.1
    tied = statistics.rank_correlation([1, 1, 2, 2], [1, 2, 3, 4], times=20)
    assert tied["rho"] == pytest.approx(0.8944, abs=1e-4)
