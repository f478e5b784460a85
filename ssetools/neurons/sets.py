"""Sets of neurons per language: their files, overlap and random controls, switching them off, and the shipped atlas."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ssetools.errors import InvalidInput, MissingLanguage
from ssetools.files import atomic_write, load_tensors, reading, save_tensors
from ssetools.models import model_mismatch, model_source
from ssetools.neurons.ffn import FFNBlock, find_ffn_blocks
from ssetools.text.embedded import EMBEDDED_MODEL

if TYPE_CHECKING:
    import pandas

LayerNeurons = list[torch.Tensor]
"""Neuron ids of one language: a LongTensor (ascending, possibly empty) for each layer."""


class NeuronSets:
    """Language-specific neurons of one model, by language code.

    Attributes:
        languages: Codes, in order.
        num_layers: Layers of the model.
        num_neurons: FFN neurons in each layer.
        metadata: Where known: model, revision, corpus, profiled languages, token counts, and the `selection` that made
            the sets ("lape" or "specific") with its parameters.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[torch.Tensor] | Sequence[Sequence[int]]],
        num_neurons: int,
        metadata: Mapping[str, Any] | None = None,
    ):
        self._sets: dict[str, LayerNeurons] = {
            lang: [torch.as_tensor(ids, dtype=torch.long) for ids in layers] for lang, layers in sets.items()
        }
        self.languages = list(self._sets)
        self.num_neurons = int(num_neurons)
        self.metadata = dict(metadata or {})
        depths = {len(layers) for layers in self._sets.values()}
        if len(depths) != 1:
            raise InvalidInput(f"Every language needs the same number of layers; got {sorted(depths)}.")
        self.num_layers = depths.pop()
        for lang, layers in self._sets.items():
            for layer, ids in enumerate(layers):
                check_ids(ids, self.num_neurons, f"language {lang!r}, layer {layer}")

    def __getitem__(self, language: str) -> LayerNeurons:
        if language not in self._sets:
            raise MissingLanguage(
                f"No neurons for language {language!r}; this file has {' '.join(self.languages)}. Select from a profile that "
                "has it: `ssetools profile --languages`."
            )
        return self._sets[language]

    def __iter__(self) -> Iterator[str]:
        return iter(self.languages)

    def __len__(self) -> int:
        return len(self.languages)

    def __repr__(self) -> str:
        model = self.metadata.get("model", "unknown model")
        return f"NeuronSets({len(self)} languages, {self.num_layers} layers x {self.num_neurons} neurons, {model})"

    def count(self, language: str) -> int:
        """Returns how many neurons a language has, over all layers."""
        return sum(len(ids) for ids in self[language])

    def mask(self, language: str) -> torch.Tensor:
        """Returns a BoolTensor [layers, neurons], true at the language's neurons."""
        mask = torch.zeros(self.num_layers, self.num_neurons, dtype=torch.bool)
        for layer, ids in enumerate(self[language]):
            mask[layer, ids] = True
        return mask

    def overlap(self) -> pandas.DataFrame:
        """Returns the Jaccard index of every two languages' sets [languages, languages]; NaN for two empty sets."""
        import pandas

        masks = torch.stack([self.mask(lang).flatten() for lang in self.languages]).float()
        shared, sizes = masks @ masks.T, masks.sum(1)
        union = sizes[:, None] + sizes - shared
        return pandas.DataFrame((shared / union).numpy(), index=self.languages, columns=self.languages)

    def random_like(self, language: str, seed: int = 0, depth_matched: bool = True) -> LayerNeurons:
        """Draws as many neurons as the language has, none of them its own: the control for its set.

        Args:
            language: The language to match in number.
            seed: Seed of the draw.
            depth_matched: Match the number in each layer; False draws uniformly over all layers.

        Returns:
            Ascending neuron ids for each layer; a ValueError if the language has more than half of those there are.
        """
        own = self.mask(language)
        order = torch.rand(own.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(own, 2.0)
        drawn = torch.zeros_like(own)
        rows = (x if depth_matched else x.view(1, -1) for x in (own, order, drawn))
        for layer, (excluded, place, row) in enumerate(zip(*rows, strict=True)):
            size = int(excluded.sum())
            if 2 * size > len(excluded):
                where = f"layer {layer}" if depth_matched else "the model"
                raise InvalidInput(
                    f"{language!r} has {size} of the {len(excluded)} neurons of {where}: the others are too few for a control "
                    "of the same size. Select fewer (a lower top_rate or per_layer)."
                )
            row[place.argsort()[:size]] = True
        return [row.nonzero().flatten() for row in drawn]

    def check_model(self, model: nn.Module) -> None:
        """Raises a ValueError if these sets were made for another model than `model`, or for other weights of it."""
        if differs := model_mismatch(self.metadata, model_source(model)):
            raise InvalidInput(f"These neuron sets were made for {differs}.")

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file: per language its ids (uint16 where they fit) and the number in each layer."""
        dtype = torch.uint16 if self.num_neurons <= 2**16 else torch.int32
        tensors = {}
        for lang, layers in self._sets.items():
            tensors[f"{lang}.neurons"] = torch.cat(layers).to(dtype)
            tensors[f"{lang}.per_layer"] = torch.tensor([len(ids) for ids in layers], dtype=torch.int32)
        facts = {"languages": " ".join(self.languages), "num_neurons": str(self.num_neurons)}
        return save_tensors(path, tensors, {**facts, "metadata": self.metadata})

    @classmethod
    def load(cls, path: str | Path) -> NeuronSets:
        """Reads what `save` wrote; a ValueError if the file is damaged or holds something else.

        Files without a selection in their metadata were selected by LAPE.
        """
        tensors, facts = load_tensors(path, "a file of neuron sets")
        with reading(path, "a file of neuron sets"):
            sets = {}
            for lang in facts["languages"].split():
                ids = tensors[f"{lang}.neurons"].long()
                sets[lang] = list(ids.split(tensors[f"{lang}.per_layer"].tolist()))
            return cls(sets, int(facts["num_neurons"]), {"selection": "lape", **facts.get("metadata", {})})

    def to_reference(self, path: str | Path) -> Path:
        """Writes the layout of the papers' files: `List[language][layer] -> LongTensor`, with no names in it."""
        # Ids that were loaded together are views of one tensor, all of which would be written with each.
        sets = [[ids.clone() for ids in self._sets[lang]] for lang in self.languages]
        with atomic_write(path) as scratch:
            torch.save(sets, scratch)
        return Path(path)

    @classmethod
    def from_reference(
        cls,
        path: str | Path,
        languages: Sequence[str],
        num_neurons: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> NeuronSets:
        """Reads a file of the papers (`List[language][layer] -> LongTensor`), and no other kind of pickle.

        Args:
            path: The file.
            languages: What the list positions mean; the file does not say.
            num_neurons: FFN width of the model; None takes the smallest that holds the ids.
            metadata: Model, revision and rates, if known.

        Raises:
            ValueError: If the number of languages does not fit the file.
        """
        with reading(path, "a file of neuron sets in the papers' layout"):
            sets = torch.load(path, weights_only=True)
            if len(sets) > len(languages):
                raise InvalidInput(f"it has {len(sets)} languages, but {len(languages)} were named.")
            # The reference leaves out the last languages if they have no neurons.
            sets = [*sets, *[[torch.empty(0)] * len(sets[0])] * (len(languages) - len(sets))]
            largest = max((int(ids.max()) for layers in sets for ids in layers if len(ids)), default=0)
            sets = {lang: [ids.long().sort().values for ids in s] for lang, s in zip(languages, sets, strict=True)}
            return cls(sets, num_neurons or largest + 1, metadata)


def check_ids(ids: torch.Tensor, num_neurons: int, where: str) -> None:
    """Raises a ValueError unless `ids` are ascending, distinct and below `num_neurons`."""
    if ids.ndim != 1 or (len(ids) and (ids.min() < 0 or ids.max() >= num_neurons)):
        raise InvalidInput(f"Neuron ids of {where} must be in 0..{num_neurons - 1}; got {ids.tolist()[:8]} ...")
    if (ids[1:] <= ids[:-1]).any():
        raise InvalidInput(f"Neuron ids of {where} must be ascending and distinct.")


# --- interventions ---


@contextlib.contextmanager
def amplified(model: nn.Module, neurons: Sequence[torch.Tensor], factor: float = 2.0) -> Iterator[nn.Module]:
    """Multiplies the output of the chosen neurons by `factor` while the block runs, to which the model is given.

    Args:
        model: A causal language model.
        neurons: Neuron ids for each layer, as in `neurons["yo"]`; a ValueError if they do not fit the model.
        factor: 0 switches the neurons off, 1 changes nothing.
    """
    blocks = find_ffn_blocks(model)
    check_layers(neurons, blocks)
    with contextlib.ExitStack() as hooks:
        for block, ids in zip(blocks, neurons, strict=True):
            if len(ids):
                factors = torch.ones(block.num_neurons, device=block.down.module.weight.device)
                factors[ids] = factor
                multiply = functools.partial(lambda x, _, args: (args[0] * x.to(args[0].dtype), *args[1:]), factors)
                hooks.callback(block.down.module.register_forward_pre_hook(multiply).remove)
        yield model


def deactivated(model: nn.Module, neurons: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[nn.Module]:
    """Switches the chosen neurons off while the block runs: `with deactivated(model, neurons["yo"]): ...`."""
    return amplified(model, neurons, factor=0.0)


def check_layers(neurons: Sequence[torch.Tensor], blocks: Sequence[FFNBlock]) -> None:
    """Raises a ValueError unless `neurons` has one list of valid ids for each block."""
    if len(neurons) != len(blocks):
        raise InvalidInput(f"The neurons are for {len(neurons)} layers, but this model has {len(blocks)}: other model?")
    for layer, (ids, block) in enumerate(zip(neurons, blocks, strict=True)):
        check_ids(ids, block.num_neurons, f"layer {layer}")


def load_atlas(model: str = EMBEDDED_MODEL, top_rate: float = 0.05) -> NeuronSets:
    """Loads the neuron sets of all languages that ship with the package.

    Args:
        model: Model whose atlas to load; "gemma-3-270m" ships.
        top_rate: 0.01 or 0.05, the share of all neurons that is selected over all languages together; else a ValueError.

    Returns:
        One set a language. `metadata["profiled_languages"]` names the languages that the selection contrasts.
    """
    path = atlas_path(model, top_rate)
    if not path.is_file():
        there = sorted(x.stem.removeprefix("atlas-") for x in path.parent.glob("atlas-*.safetensors"))
        raise InvalidInput(
            f"No atlas of {model!r} at top_rate {top_rate} ships; there is {', '.join(there)} (percent). For a model of "
            "your own: python -m study.atlas.make --model ..., or ssetools profile --languages 'yo ig'."
        )
    return NeuronSets.load(path)


def atlas_path(model: str, top_rate: float) -> Path:
    """Returns where the package keeps the atlas of a model."""
    return Path(__file__).parents[1] / "data" / f"atlas-{model.replace('/', '--')}-{100 * top_rate:g}.safetensors"
