"""Alignment and weight change against what is known by construction."""

from __future__ import annotations

import itertools

import families
import pytest
import torch

from ssetools.evaluation.inside import align_passages, alignment, change_by_depth, weight_change
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.training.methods import attach_method

_WORDS = torch.randint(3, 93, (9, 15), generator=torch.Generator().manual_seed(0)).tolist()
PASSAGES = [" ".join(f"w{i}" for i in words) for words in _WORDS]


def moved_a_little(model, method):
    """Attaches a method and gives what it trains values that are neither zero nor alike."""
    adapter = attach_method(model, method, families.some_neurons(model))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    adapter.publish()
    return adapter


def test_a_text_aligns_with_itself_and_not_with_others(word_tokenizer):
    model = families.tiny_model("llama")
    same = align_passages(model, word_tokenizer, PASSAGES, PASSAGES)
    torch.testing.assert_close(same.matched, torch.ones_like(same.matched))
    assert (same.retrieved == 1).all()
    assert (same.margin > 0).all()
    wrong = align_passages(model, word_tokenizer, PASSAGES, PASSAGES[1:] + PASSAGES[:1])
    assert (wrong.retrieved == 0).all()
    assert (wrong.matched.mean(1) < same.matched.mean(1)).all()
    table = wrong.table(base=same)
    assert (table[table.measure == "retrieved"]["mean"] == -1).all()
    assert (table.low <= table["mean"] + 1e-6).all()
    with pytest.raises(ValueError, match="cannot be compared"):
        same.table(align_passages(model, word_tokenizer, PASSAGES[:5], PASSAGES[:5]))


def test_the_shuffled_control_is_the_mean_of_all_wrong_pairs(word_tokenizer):
    model = families.tiny_model("llama")
    other = PASSAGES[3:] + PASSAGES[:3]
    found = align_passages(model, word_tokenizer, PASSAGES, other)
    wrong = []
    for shift in range(1, len(PASSAGES)):
        wrong.append(align_passages(model, word_tokenizer, PASSAGES, other[shift:] + other[:shift]).matched.mean(1))
    torch.testing.assert_close(found.shuffled.mean(1), torch.stack(wrong).mean(0))


def test_alignment_refuses_what_it_cannot_compare(word_tokenizer):
    model = families.tiny_model("llama")
    with pytest.raises(ValueError, match="two languages; got 'yo' twice"):
        alignment(model, word_tokenizer, "yo", "yo")
    with pytest.raises(ValueError, match="two or more pairs"):
        align_passages(model, word_tokenizer, PASSAGES[:1], PASSAGES[:1])


@pytest.mark.parametrize(
    ("family", "method"),
    [*itertools.product(["llama", "phi3", "gpt2"], ["lape", "ffn", "full", "lora"]), ("llama", "ia3")],
)
def test_weight_change_is_that_of_the_merged_weights(family, method):
    model = families.tiny_model(family)
    blocks = find_ffn_blocks(model)
    before = {p.path: p.module.weight.detach().clone() for block in blocks for p in block.projections}
    adapter = moved_a_little(model, method)
    adapter.scale = 0.5
    found = weight_change(adapter).set_index(["layer", "projection"])
    adapter.merge()
    after = {path: model.get_submodule(path).weight.detach() for path in before}
    for layer, block in enumerate(blocks):
        for projection in block.projections:
            difference, base = after[projection.path] - before[projection.path], before[projection.path]
            if len(block.inputs) == 2 and projection.path == block.inputs[0].path == block.inputs[1].path:
                rows = slice(projection.offset, projection.offset + block.num_neurons)
                difference, base = difference[rows], base[rows]
            if (layer, projection.name) not in found.index:
                assert method == "ia3", "PEFT scales what enters the down projection, and no other of the FFN"
                assert not difference.any()
                continue
            row = found.loc[(layer, projection.name)]
            assert row.delta == pytest.approx(difference.norm().item(), rel=1e-4)
            assert row.matrix == pytest.approx(base.norm().item(), rel=1e-4)
            assert row.relative_to_matrix == pytest.approx(difference.norm().item() / base.norm().item(), rel=1e-4)


def test_weight_change_over_an_8bit_base_uses_what_it_computes_with():
    plain, small = (moved_a_little(families.tiny_model("llama", bits), "lape") for bits in (False, True))
    a, b = weight_change(plain), weight_change(small.model)
    assert torch.allclose(torch.tensor(a.base.values), torch.tensor(b.base.values), rtol=0.02)
    assert not torch.equal(torch.tensor(a.base.values), torch.tensor(b.base.values))
    depth = change_by_depth(b, num_layers=2)
    assert list(depth.index) == ["gate", "up", "down"]


def test_an_adapter_beside_the_ffn_has_no_change_to_measure():
    model = families.tiny_model("llama")
    adapter = attach_method(model, "ia3")
    for block in find_ffn_blocks(model):
        parent, _, name = block.down.path.rpartition(".")
        setattr(model.get_submodule(parent), name, model.get_submodule(block.down.path).get_base_layer())
    with pytest.raises(ValueError, match="changes no FFN projection"):
        weight_change(adapter)
    adapter.detach()
    with pytest.raises(ValueError, match="No adapter is attached"):
        weight_change(model)
