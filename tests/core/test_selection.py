"""Selections, neuron sets and their files, against plain loops over a small case."""

import math

import families
import pytest
import torch

from ssetools import (
    ActivationProfile,
    NeuronSets,
    lape_entropy,
    load_atlas,
    neurons_per_layer,
    select_neurons,
    select_specific,
)
from ssetools.files import load_tensors, save_tensors
from ssetools.neurons.selection import _specificity


def random_profile(languages="mt af is cy", layers=3, neurons=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = languages.split()
    tokens = torch.randint(5_000, 9_000, (len(codes),), generator=generator)
    shares = torch.rand(len(codes), layers, neurons, generator=generator, dtype=torch.float64) ** 4
    counts = (shares * tokens[:, None, None]).long()
    return ActivationProfile(counts, tokens, codes)


def plain_selection(profile, top_rate, filter_rate=0.95, bar=0.95):
    """The reference's selection, written with lists and sorts only."""
    codes = profile.languages
    layers, width = profile.counts.shape[1:]
    p = {
        (layer, j): [float(torch.tensor(c).float() / t) for c, t in zip(column, profile.tokens.float(), strict=True)]
        for layer in range(layers)
        for j, column in enumerate(profile.counts[:, layer].T.tolist())
    }
    pooled = sorted(x for row in p.values() for x in row)
    floor = pooled[round(len(pooled) * filter_rate) - 1]
    own = pooled[round(len(pooled) * bar) - 1]
    entropy = {}
    for key, row in p.items():
        q = [x / sum(row) for x in row if x > 0] if sum(row) else []
        entropy[key] = -sum(x * math.log(x) for x in q) if max(row) > floor else math.inf
    chosen = sorted(entropy, key=entropy.get)[: round(layers * width * top_rate)]
    return {
        code: [sorted(j for (i, j) in chosen if i == layer and p[i, j][k] > own) for layer in range(layers)]
        for k, code in enumerate(codes)
    }


@pytest.mark.parametrize("top_rate", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_selection_equals_plain_loops(top_rate, seed):
    profile = random_profile(seed=seed)
    neurons = select_neurons(profile, top_rate)
    expected = plain_selection(profile, top_rate)
    assert {code: [ids.tolist() for ids in neurons[code]] for code in neurons} == expected


def test_entropy_of_known_cases():
    counts = torch.tensor([[[10, 5, 0]], [[0, 5, 0]]])
    entropy = lape_entropy(ActivationProfile(counts, torch.tensor([10, 10]), ["a", "b"]))
    torch.testing.assert_close(entropy, torch.tensor([[0.0, math.log(2), 0.0]]))


def test_a_language_without_neurons_keeps_its_place():
    counts = torch.full((3, 2, 50), 10)
    counts[0, 0, :5] = 900
    counts[1, 1, :3] = 900
    neurons = select_neurons(ActivationProfile(counts, torch.tensor([1000] * 3), ["a", "b", "last"]), 0.05)
    assert neurons.languages == ["a", "b", "last"]
    assert neurons.count("a") > 0
    assert [ids.tolist() for ids in neurons["last"]] == [[], []]


def test_dead_neurons_are_never_selected():
    counts = torch.zeros(2, 1, 10, dtype=torch.long)
    counts[0, 0, 0] = 9
    neurons = select_neurons(ActivationProfile(counts, torch.tensor([10, 10]), ["a", "b"]), 1.0, 0.5, 0.5)
    assert neurons["a"][0].tolist() == [0]
    assert neurons["b"][0].tolist() == []


def test_bad_rates_and_single_language():
    profile = random_profile()
    with pytest.raises(ValueError, match="top_rate is a share above 0 and at most 1, got 5"):
        select_neurons(profile, 5)
    with pytest.raises(ValueError, match="Profile two or more"):
        select_neurons(profile.subset(["mt"]))
    with pytest.raises(ValueError, match=r"no \['yo'\]"):
        profile.subset(["mt", "yo"])


def plain_specific(profile, per_layer, compared):
    """The specific selection, written with loops only; `compared` languages are averaged."""
    layers, width = profile.counts.shape[1:]
    tokens, found = profile.tokens.tolist(), {}
    for k, code in enumerate(profile.languages):
        scores = {}
        for layer in range(layers):
            for j in range(width):
                rates = [profile.counts[i, layer, j].item() / tokens[i] for i in range(len(tokens))]
                others = sorted(rates[:k] + rates[k + 1 :])[-compared:]
                scores[layer, j] = rates[k] * math.log((rates[k] + 1e-4) / (sum(others) / len(others) + 1e-4))
        best = sorted((x for x in scores if scores[x] > 1e-12), key=lambda x: (-scores[x], x))
        chosen = [x for layer in range(layers) for x in [x for x in best if x[0] == layer][:per_layer]]
        chosen += [x for x in best if x not in chosen][: per_layer * layers - len(chosen)]
        found[code] = [sorted(j for i, j in chosen if i == layer) for layer in range(layers)]
    return found


@pytest.mark.parametrize(("against", "compared"), [("top 3", 3), ("mean", 4)])
@pytest.mark.parametrize("per_layer", [1, 3, 9, 100])
def test_the_specific_selection_equals_plain_loops(against, compared, per_layer):
    profile = random_profile("mt af is cy yo", seed=per_layer)
    profile.counts[1, 1] = 0  # a layer without a positive score, which the other layers fill
    profile.counts[:, 2, 7] = profile.counts[0, 2, 7]
    neurons = select_specific(profile, per_layer, against)
    found = {code: [ids.tolist() for ids in neurons[code]] for code in neurons}
    assert found == plain_specific(profile, per_layer, compared)
    if per_layer == 3:
        assert neurons.count("af") == 9
        assert [len(ids) for ids in neurons["af"]][1] == 0


def test_the_specific_selection_defaults_to_the_three_highest_others():
    profile = random_profile("mt af is cy yo")
    default, three, mean = (select_specific(profile, 4, *x) for x in ((), ("top 3",), ("mean",)))
    assert all(torch.equal(a, b) for x in default for a, b in zip(default[x], three[x], strict=True))
    assert any(not torch.equal(a, b) for x in default for a, b in zip(default[x], mean[x], strict=True))
    assert default.metadata["selection"] == "specific"
    assert (default.metadata["per_layer"], default.metadata["against"]) == (4, "top 3")


def test_equal_rates_have_no_specific_neurons():
    codes = list("abcdefghijk")
    counts = torch.full((11, 2, 5), 13)  # the mean of ten times 0.13 is less than 0.13 in floating point
    profile = ActivationProfile(counts, torch.full((11,), 100), codes)
    for others, against in ((3, "top 3"), (10, "mean")):
        assert _specificity(profile, others).abs().max() == 0
        neurons = select_specific(profile, 2, against)
        assert [neurons.count(code) for code in codes] == [0] * 11


def test_two_languages_and_ties_in_the_specific_selection():
    counts = torch.zeros(2, 2, 6, dtype=torch.long)
    counts[0, :, 1:5] = 50  # eight equal scores
    counts[1, 1, 0] = 30
    profile = ActivationProfile(counts, torch.tensor([100, 100]), ["a", "b"])
    assert _specificity(profile, 3)[0, 0, 1].item() == pytest.approx(0.5 * math.log((0.5 + 1e-4) / 1e-4))
    neurons = select_specific(profile, 3)
    assert [ids.tolist() for ids in neurons["a"]] == [[1, 2, 3], [1, 2, 3]]
    assert [ids.tolist() for ids in neurons["b"]] == [[], [0]]
    counts[0, 0, 1:5] = 0
    neurons = select_specific(ActivationProfile(counts, torch.tensor([100, 100]), ["a", "b"]), 2)
    assert [ids.tolist() for ids in neurons["a"]] == [[], [1, 2, 3, 4]], "the other layer fills the budget"


def test_bad_parameters_of_the_specific_selection():
    profile = random_profile()
    with pytest.raises(ValueError, match="per_layer must be at least 1, got 0"):
        select_specific(profile, 0)
    with pytest.raises(ValueError, match='against is "top 3" or "mean", got "top3"'.replace('"top3"', "'top3'")):
        select_specific(profile, 3, "top3")
    with pytest.raises(ValueError, match="only \\['mt'\\]"):
        select_specific(profile.subset(["mt"]), 3)


def test_neurons_per_layer_is_a_share_of_the_weights():
    model = families.tiny_model("llama")
    weights = sum(p.numel() for p in model.parameters())
    for share in (0.05, 0.2, 0.3):
        assert neurons_per_layer(model, share) == math.floor(share * weights / (2 * 3 * 32))
    assert neurons_per_layer(model, 1.0) == 48, "no more than a layer has"
    with pytest.raises(ValueError, match="less than a neuron in each layer: raise it"):
        neurons_per_layer(model, 0.001)
    with pytest.raises(ValueError, match="share is a share above 0 and at most 1, got 2"):
        neurons_per_layer(model, 2)


def test_one_percent_of_the_embedded_model_is_77_neurons_a_layer():
    import transformers

    config = transformers.Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == 268_098_176
    assert neurons_per_layer(model) == 77


def test_files_say_which_selection_made_them(tmp_path):
    profile = random_profile()
    made = {"lape": select_neurons(profile, 0.1), "specific": select_specific(profile, 3)}
    for selection, neurons in made.items():
        loaded = NeuronSets.load(neurons.save(tmp_path / f"{selection}.safetensors"))
        assert loaded.metadata["selection"] == selection
        assert loaded.metadata == neurons.metadata
    assert load_atlas().metadata["selection"] == "lape", "older files do not say so"


def test_profiles_add():
    profile, other = random_profile(seed=1), random_profile(seed=2)
    total = profile + other.subset(["cy", "is", "af", "mt"])
    assert torch.equal(total.counts, profile.counts + other.counts)
    assert torch.equal(total.tokens, profile.tokens + other.tokens)
    joined = profile.subset(["mt", "af"]) + profile.subset(["is", "cy"])
    assert torch.equal(joined.counts, profile.counts)
    with pytest.raises(ValueError, match=r"both have \['af'\]"):
        _ = profile.subset(["mt", "af"]) + profile.subset(["af", "cy"])
    with pytest.raises(ValueError, match="different models"):
        _ = profile + random_profile(layers=2)
    first, second = (
        ActivationProfile(x.counts, x.tokens, x.languages, {"model": m}) for x, m in ((profile, "m"), (other, "n"))
    )
    with pytest.raises(ValueError, match="different models: model 'm', not 'n'"):
        _ = first + second


def test_files(tmp_path):
    profile = random_profile()
    profile.metadata = {"model": "m", "revision": "r", "note": "ọ̀rọ̀"}
    again = ActivationProfile.load(profile.save(tmp_path / "p.safetensors"))
    assert torch.equal(again.counts, profile.counts)
    assert (again.languages, again.metadata) == (profile.languages, profile.metadata)
    neurons = select_neurons(profile, 0.1)
    loaded = NeuronSets.load(neurons.save(tmp_path / "n.safetensors"))
    assert loaded.metadata == neurons.metadata
    assert loaded.metadata["tokens"]["mt"] == int(profile.tokens[0])
    assert all(torch.equal(a, b) for x in neurons for a, b in zip(neurons[x], loaded[x], strict=True))
    with pytest.raises(ValueError, match="not a file of neuron sets"):
        NeuronSets.load(tmp_path / "p.safetensors")
    tensors, facts = load_tensors(tmp_path / "n.safetensors", "a file of neuron sets")
    del tensors["is.per_layer"]
    save_tensors(tmp_path / "cut.safetensors", tensors, facts)
    with pytest.raises(ValueError, match=r"cut.safetensors is not a file of neuron sets.*is.per_layer"):
        NeuronSets.load(tmp_path / "cut.safetensors")
    with pytest.raises(KeyError, match="this file has mt af is cy"):
        neurons["yo"]


def test_reference_layout(tmp_path):
    neurons = select_neurons(random_profile(), 0.1)
    path = neurons.to_reference(tmp_path / "sets.pth")
    raw = torch.load(path, weights_only=True)
    assert [len(layers) for layers in raw] == [3] * 4
    back = NeuronSets.from_reference(path, languages=neurons.languages, num_neurons=40)
    assert all(torch.equal(a, b) for x in neurons for a, b in zip(neurons[x], back[x], strict=True))
    longer = NeuronSets.from_reference(path, languages=[*neurons.languages, "yo"])
    assert longer.count("yo") == 0, "the reference drops trailing empty languages; their place is kept"
    with pytest.raises(ValueError, match="has 4 languages, but 1 were named"):
        NeuronSets.from_reference(path, languages=["mt"])


SEVEN, TWELVE = "en zh fr es vi id ja", "mt af is cy mk lv lt sl sk et ka ne"
THIRTY_TWO = "en ar bo da de es fr hi it ja ko mt nl no pl pt ru sv tr zh sk el kk sw ka uk fa th id vi cs ro"


def published(languages, layers, width, last_is_empty=False, seed=0):
    """Makes sets as the papers' files hold them: plain lists, ids of each layer in a LongTensor of its own."""
    generator = torch.Generator().manual_seed(seed)
    sets = []
    for place in range(len(languages)):
        counts = torch.randint(0, 9, (layers,), generator=generator)
        counts[place % layers] = 0  # every language has an empty layer
        if last_is_empty and place == len(languages) - 1:
            counts[:] = 0
        sets.append([torch.randperm(width, generator=generator)[:n].sort().values for n in counts.tolist()])
    return sets


@pytest.mark.parametrize("last_is_empty", [False, True])
@pytest.mark.parametrize(
    ("languages", "layers", "width"),
    [(SEVEN, 30, 11008), (THIRTY_TWO, 32, 14336), (TWELVE, 40, 14336)],
    ids=["7 languages", "32 languages", "12 languages"],
)
def test_published_files_come_in_by_the_stated_order_and_go_out_as_they_came(
    tmp_path, languages, layers, width, last_is_empty
):
    languages = languages.split()
    sets = published(languages, layers, width, last_is_empty)
    torch.save(sets, tmp_path / "published.pth")
    neurons = NeuronSets.from_reference(tmp_path / "published.pth", languages, num_neurons=width)
    assert neurons.languages == languages
    assert (neurons.num_layers, neurons.num_neurons) == (layers, width)
    for lang, expected in zip(languages, sets, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(neurons[lang], expected, strict=True))
    assert (neurons.count(languages[-1]) == 0) == last_is_empty
    own = NeuronSets.load(neurons.save(tmp_path / "own.safetensors"))
    again = torch.load(own.to_reference(tmp_path / "again.pth"), weights_only=True)
    assert type(again) is list
    assert all(type(layers) is list for layers in again)
    for mine, theirs in zip(again, sets, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == b.dtype == torch.long
            assert torch.equal(a, b)
            assert a.untyped_storage().nbytes() == a.nbytes, "a tensor carries no more than its ids"
    size, theirs = ((tmp_path / name).stat().st_size for name in ("again.pth", "published.pth"))
    assert size == pytest.approx(theirs, rel=0.2)


def test_a_published_file_without_its_last_languages_keeps_their_places(tmp_path):
    languages = THIRTY_TWO.split()
    torch.save(published(languages, 4, 50)[:-2], tmp_path / "short.pth")
    neurons = NeuronSets.from_reference(tmp_path / "short.pth", languages)
    assert neurons.languages == languages
    assert [neurons.count(lang) for lang in languages[-2:]] == [0, 0]
    assert [len(ids) for ids in neurons["ro"]] == [0] * 4
    assert neurons.count("vi") > 0
    assert len(torch.load(neurons.to_reference(tmp_path / "out.pth"), weights_only=True)) == 32


def test_reference_files_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save([Evil()], tmp_path / "evil.pth")
    with pytest.raises(Exception, match="[Ww]eights.only|Unsupported"):
        NeuronSets.from_reference(tmp_path / "evil.pth", languages=["mt"])


def test_random_controls():
    neurons = select_neurons(random_profile(), 0.3)
    matched, uniform = neurons.random_like("mt", seed=1), neurons.random_like("mt", seed=1, depth_matched=False)
    assert [len(a) for a in matched] == [len(b) for b in neurons["mt"]]
    assert sum(map(len, uniform)) == neurons.count("mt")
    for draw in (matched, uniform):
        for ids, own in zip(draw, neurons["mt"], strict=True):
            assert not set(ids.tolist()) & set(own.tolist())
            assert ids.tolist() == sorted(set(ids.tolist()))
    again = neurons.random_like("mt", seed=1)
    assert all(torch.equal(a, b) for a, b in zip(matched, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(matched, neurons.random_like("mt", seed=2), strict=True))


def test_a_control_that_cannot_be_apart_is_refused():
    sets = NeuronSets({"yo": [torch.arange(6), torch.arange(2)]}, num_neurons=10)
    with pytest.raises(ValueError, match="'yo' has 6 of the 10 neurons of layer 0: the others are too few"):
        sets.random_like("yo")
    spread = sets.random_like("yo", depth_matched=False)
    assert sum(map(len, spread)) == 8
    assert not set(spread[0].tolist()) & set(range(6))
    large = NeuronSets({"yo": [torch.arange(6), torch.arange(6)]}, num_neurons=10)
    with pytest.raises(ValueError, match="12 of the 20 neurons of the model"):
        large.random_like("yo", depth_matched=False)


def test_overlap_is_jaccard():
    sets = {"a": [[0, 1, 2], []], "b": [[1, 2, 3], []], "c": [[], [5]]}
    table = NeuronSets(sets, num_neurons=10).overlap()
    assert table.loc["a", "b"] == pytest.approx(0.5)
    assert table.loc["a", "c"] == 0
    assert table.loc["a", "a"] == 1


@pytest.mark.parametrize("ids", [[3, 1], [1, 1], [10], [-1]])
def test_bad_ids_are_refused(ids):
    with pytest.raises(ValueError, match="Neuron ids of language 'a', layer 0 must"):
        NeuronSets({"a": [ids]}, num_neurons=10)
