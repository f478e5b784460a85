"""Files from elsewhere, damaged or hostile: each is read, or refused by a sentence, and nothing in it is run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import families
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ssetools import ActivationProfile, NeuronSets, Subnetwork
from ssetools.errors import UserError
from ssetools.files import kept, read_json, reading, write_json
from ssetools.training.methods import load_adapter

FUZZ = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WIDTH, LAYERS = 20, 2


def neuron_sets(path):
    NeuronSets(
        {"yo": [torch.tensor([1, 5]), torch.tensor([7])], "is": [torch.tensor([2]), torch.tensor([])]}, WIDTH
    ).save(path)


def profile(path):
    counts = torch.arange(2 * LAYERS * WIDTH).view(2, LAYERS, WIDTH)
    ActivationProfile(counts=counts, tokens=torch.tensor([100, 100]), languages=["yo", "is"], metadata={"a": 1}).save(
        path
    )


def reference(path):
    torch.save([[torch.tensor([1, 5]), torch.tensor([7])], [torch.tensor([2]), torch.tensor([])]], path)


KINDS = {
    "neurons.safetensors": (neuron_sets, NeuronSets.load),
    "profile.safetensors": (profile, ActivationProfile.load),
    "reference.pt": (reference, lambda path: NeuronSets.from_reference(path, ["yo", "is"])),
    "metrics.json": (lambda path: write_json(path, {"a": 1, "b": [1, 2]}), read_json),
    "facts.json": (lambda path: write_json(path, {"a": 1, "b": [1, 2]}), lambda path: kept(path, {"a": 1}, "remake")),
}


def read(loader, path):
    """Loads a file; only errors that are sentences for the user pass."""
    try:
        return loader(path)
    except UserError as error:
        sentence = str(error)
    assert path.name in sentence
    return None


@pytest.mark.parametrize("name", list(KINDS))
@given(data=st.data())
@FUZZ
def test_damaged_bytes(name, data, tmp_path):
    make, loader = KINDS[name]
    path = tmp_path / name
    make(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damage = data.draw(st.sampled_from(["cut", "set", "insert"]))
        position = data.draw(st.integers(0, max(0, len(content) - 1)))
        if damage == "cut":
            del content[position:]
        elif damage == "set" and content:
            content[position] = data.draw(st.integers(0, 255))
        else:
            content[position:position] = data.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(content)
    read(loader, path)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
tensors = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from([torch.int64, torch.float32, torch.int32, torch.uint8, torch.float16]),
    st.sampled_from([-3.0, 0.0, 1.0, 19.0, 21.0, 1e9, float("nan"), float("inf")]),
)


@pytest.mark.parametrize("name", ["neurons.safetensors", "profile.safetensors"])
@given(data=st.data())
@FUZZ
def test_well_formed_files_with_other_contents(name, data, tmp_path):
    names = ["yo.neurons", "yo.per_layer"] if name.startswith("neurons") else ["counts", "tokens"]
    content = {key: data.draw(tensors) for key in names if data.draw(st.booleans())}
    header = {
        "languages": data.draw(st.sampled_from(["yo", "yo is", "", "yo yo", "../../yo"])),
        "num_neurons": data.draw(st.sampled_from(["20", "-1", "x", "1e3", "99999999999999999999"])),
        "metadata": json.dumps(data.draw(values)),
    }
    header = {key: value for key, value in header.items() if data.draw(st.integers(0, 4))}
    save_file(content, tmp_path / name, metadata=header)
    loaded = read(KINDS[name][1], tmp_path / name)
    for lang in loaded.languages if isinstance(loaded, NeuronSets) else ():
        for ids in loaded[lang]:
            assert not len(ids) or 0 <= ids.min() <= ids.max() < loaded.num_neurons
            assert (ids[1:] > ids[:-1]).all()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = families.tiny_model("llama")
    subnet = Subnetwork.attach(model, families.some_neurons(model))
    subnet.save(folder := tmp_path_factory.mktemp("adapter"))
    subnet.detach()
    return model, folder


@given(data=st.data())
@FUZZ
def test_adapters_with_other_contents(data, saved, tmp_path):
    model, folder = saved
    about = json.loads((folder / "adapter.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(about)))
        about[key] = data.draw(values)
        if data.draw(st.booleans()):
            del about[key]
            break
    (tmp_path / "adapter.json").write_text(json.dumps(about))
    (tmp_path / "adapter.safetensors").write_bytes((folder / "adapter.safetensors").read_bytes())
    read_adapter(tmp_path, model)


@given(data=st.data())
@FUZZ
def test_damaged_adapters(data, saved, tmp_path):
    model, folder = saved
    for path in folder.glob("adapter.*"):
        content = bytearray(path.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        (tmp_path / path.name).write_bytes(content)
    read_adapter(tmp_path, model)


def read_adapter(folder: Path, model):
    """Attaches an adapter or is refused; either way the model is as it was afterwards."""
    before = model(input_ids=families.tokens()).logits
    adapter, sentence = None, folder.name
    try:
        adapter = load_adapter(folder, model)
    except UserError as error:
        sentence = str(error)
    assert folder.name in sentence
    if adapter:
        assert all(bool(p.isfinite().all()) for p in adapter.parameters())
        adapter.detach()
    torch.testing.assert_close(model(input_ids=families.tokens()).logits, before, rtol=0, atol=0)


class _Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("loader", [KINDS["reference.pt"][1], NeuronSets.load, ActivationProfile.load])
def test_a_pickle_with_code_is_refused(tmp_path, loader):
    (tmp_path / "reference.pt").write_bytes(pickle.dumps(_Command(tmp_path / "run"), protocol=2))
    with pytest.raises(UserError, match=r"reference\.pt"):
        loader(tmp_path / "reference.pt")
    assert not (tmp_path / "run").exists()


def test_a_model_is_as_it_was_when_a_file_of_an_adapter_is_missing(saved, tmp_path):
    model, folder = saved
    (tmp_path / "adapter.json").write_bytes((folder / "adapter.json").read_bytes())
    with pytest.raises(FileNotFoundError):
        load_adapter(tmp_path, model)
    assert getattr(model, "ssetools_adapter", None) is None
    adapter = load_adapter(folder, model)
    with pytest.raises(UserError, match="^This model already has an adapter attached"):
        load_adapter(folder, model)
    adapter.detach()


def test_running_out_of_memory_is_not_taken_for_a_damaged_file(tmp_path):
    with pytest.raises(torch.OutOfMemoryError), reading(tmp_path / "adapter", "an adapter"):
        raise torch.OutOfMemoryError("CUDA out of memory")
