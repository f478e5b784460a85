"""Sets of neurons per language: the mask object, its files, its overlap, and its random control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ssetools.ffn import find_ffn_blocks
from ssetools.models import other_model
from ssetools.paths import whole_file
from ssetools.tensors import load_tensors, save_tensors

LayerNeurons = list[torch.Tensor]
"""Neuron ids of one language: a LongTensor (ascending, possibly empty) for each layer."""


class NeuronSets:
    """Language-specific neurons of one model, by language code.

    Attributes:
        languages: Codes, in order.
        num_layers: Layers of the model.
        num_neurons: FFN neurons in each layer.
        metadata: Model, revision, corpus, profiled languages, rates and token counts, where known.
    """

    def __init__(self, sets: Mapping[str, Sequence], num_neurons: int, metadata: Mapping | None = None):
        self._sets = {lang: [torch.as_tensor(ids, dtype=torch.long) for ids in layers] for lang, layers in sets.items()}
        self.languages = list(self._sets)
        self.num_neurons = int(num_neurons)
        self.metadata = dict(metadata or {})
        depths = {len(layers) for layers in self._sets.values()}
        if len(depths) != 1:
            raise ValueError(f"Every language needs the same number of layers; got {sorted(depths)}.")
        self.num_layers = depths.pop()
        for lang, layers in self._sets.items():
            for layer, ids in enumerate(layers):
                check_ids(ids, self.num_neurons, f"language {lang!r}, layer {layer}")

    def __getitem__(self, language: str) -> LayerNeurons:
        if language not in self._sets:
            raise KeyError(
                f"No neurons for language {language!r}; this file has {' '.join(self.languages)}. Select from a profile that "
                "has it: `ssetools profile --languages`."
            )
        return self._sets[language]

    def __iter__(self) -> Iterator[str]:
        return iter(self.languages)

    def __contains__(self, language: str) -> bool:
        return language in self._sets

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

    def overlap(self):
        """Returns the Jaccard index of every two languages' sets, as a DataFrame [languages, languages].

        Two empty sets have no overlap to speak of: NaN.
        """
        import pandas

        masks = torch.stack([self.mask(lang).flatten() for lang in self.languages]).float()
        shared = masks @ masks.T
        sizes = masks.sum(1)
        union = sizes[:, None] + sizes[None, :] - shared
        return pandas.DataFrame((shared / union).numpy(), index=self.languages, columns=self.languages)

    def random_like(self, language: str, seed: int = 0, depth_matched: bool = True) -> LayerNeurons:
        """Draws as many neurons as the language has, none of them its own: the control for its set.

        Args:
            language: The language to match in number.
            seed: Seed of the draw.
            depth_matched: Match the number in each layer; False draws uniformly over all layers.

        Returns:
            Ascending neuron ids for each layer.

        Raises:
            ValueError: If the language has more than half of a layer (or of the model), which leaves too few others.
        """
        generator = torch.Generator().manual_seed(seed)
        free = ~self.mask(language)
        for layer, row in enumerate(free if depth_matched else [free.flatten()]):
            if 2 * int(row.sum()) < len(row):
                where = f"layer {layer}" if depth_matched else "the model"
                raise ValueError(
                    f"{language!r} has {int((~row).sum())} of the {len(row)} neurons of {where}: the others are too few for a "
                    "control of the same size. Select fewer (a lower top_rate)."
                )
        order = torch.rand(free.shape, generator=generator).masked_fill(~free, 2.0)
        if depth_matched:
            return [row.argsort()[: len(ids)].sort().values for row, ids in zip(order, self[language], strict=True)]
        chosen = torch.zeros(free.numel(), dtype=torch.bool)
        chosen[order.flatten().argsort()[: self.count(language)]] = True
        return [row.nonzero().flatten() for row in chosen.view_as(free)]

    def check_model(self, model: nn.Module) -> None:
        """Raises a ValueError unless these sets were made for `model`: same name, revision, layers and width."""
        blocks = find_ffn_blocks(model)
        if (self.num_layers, self.num_neurons) != (len(blocks), blocks[0].num_neurons):
            raise ValueError(
                f"These neuron sets are for {self.metadata.get('model', 'a model')} with {self.num_layers} layers of "
                f"{self.num_neurons} neurons; this model has {len(blocks)} layers of {blocks[0].num_neurons}."
            )
        if differs := other_model(self.metadata, model):
            raise ValueError(f"These neuron sets were made for {differs}.")

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
        """Reads what `save` wrote."""
        tensors, facts = load_tensors(path, "a file of neuron sets")
        if "num_neurons" not in facts or "languages" not in facts:
            raise ValueError(f"{path} is not a file of neuron sets: its header has no languages.")
        sets = {}
        for lang in facts["languages"].split():
            ids = tensors[f"{lang}.neurons"].long()
            sets[lang] = list(ids.split(tensors[f"{lang}.per_layer"].tolist()))
        return cls(sets, int(facts["num_neurons"]), facts.get("metadata", {}))

    def to_reference(self, path: str | Path) -> Path:
        """Writes the layout of the papers' files: `List[language][layer] -> LongTensor`, with no names in it."""
        # Copies: ids that were loaded together are views of one tensor, and each would carry all of it.
        sets = [[ids.clone() for ids in self._sets[lang]] for lang in self.languages]
        with whole_file(path) as scratch:
            torch.save(sets, scratch)
        return Path(path)

    @classmethod
    def from_reference(
        cls, path: str | Path, languages: Sequence[str], num_neurons: int | None = None, metadata: Mapping | None = None
    ) -> NeuronSets:
        """Reads a file of the papers (`List[language][layer] -> LongTensor`), never arbitrary pickle.

        Args:
            path: The file.
            languages: What the list positions mean; the file does not say.
            num_neurons: FFN width of the model; None takes the smallest that holds the ids.
            metadata: Model, revision and rates, if known.

        Raises:
            ValueError: If the number of languages does not fit the file.
        """
        sets = torch.load(path, weights_only=True)
        if len(sets) > len(languages):
            raise ValueError(f"{path} has {len(sets)} languages, but {len(languages)} were named.")
        # The reference drops trailing languages that have no neurons; their place is kept here.
        sets = [*sets, *[[torch.empty(0)] * len(sets[0])] * (len(languages) - len(sets))]
        largest = max((int(ids.max()) for layers in sets for ids in layers if len(ids)), default=0)
        sets = {lang: [ids.long().sort().values for ids in s] for lang, s in zip(languages, sets, strict=True)}
        return cls(sets, num_neurons or largest + 1, metadata)


def check_ids(ids: torch.Tensor, num_neurons: int, where: str) -> None:
    """Raises a ValueError unless `ids` are ascending, distinct and below `num_neurons`."""
    if ids.ndim != 1 or (len(ids) and (ids.min() < 0 or ids.max() >= num_neurons)):
        raise ValueError(f"Neuron ids of {where} must lie in 0..{num_neurons - 1}; got {ids.tolist()[:8]} ...")
    if (ids[1:] <= ids[:-1]).any():
        raise ValueError(f"Neuron ids of {where} must be ascending and distinct.")
