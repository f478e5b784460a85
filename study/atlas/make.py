"""Builds the atlas of language neurons: counts, the neuron sets in the package, and the analyses in book/results/atlas/.

Run: python -m study.atlas.make [--model ...] [--source udhr] [--languages "yo is ..."] [--seconds 240]
Every step reuses the files that exist, so the script can be interrupted and resumed; with --seconds it stops by itself.
For another model or other text it counts, selects, and saves the neuron sets in the runs folder.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy

from ssetools.files import model_dir, provenance, write_json
from ssetools.languages import (
    CONTRAST_LANGUAGES,
    LANGUAGES,
    TARGET_LANGUAGES,
    UNSPACED_SCRIPTS,
    Language,
    get_language,
    num_words,
)
from ssetools.models import body_of, load_model
from ssetools.neurons.selection import select_neurons
from ssetools.neurons.sets import NeuronSets, atlas_path, load_atlas
from ssetools.text import embedded
from ssetools.text.embedded import EMBEDDED_MODEL
from ssetools.text.sources import languages_in
from study.atlas import statistics
from study.atlas.amplification import LANGUAGES as AMPLIFIED_LANGUAGES
from study.atlas.amplification import amplification_effect
from study.atlas.effects import deactivation_losses, row_names, score_declarations, specificity
from study.atlas.shards import (
    SHARDS,
    TOP_RATES,
    ShardedProfile,
    interface_messages,
    load_results,
    load_shards,
    profile_atlas,
)

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results" / "atlas"
_MIN_MESSAGES, _MIN_LONG_MESSAGES = 1500, 150
_DEACTIVATED_LANGUAGES = 32
_SHARDS_OF_MORE_TEXT = 64
_NEAREST = 5


class OutOfTime(Exception):
    """The time given with --seconds is used up; finished work is saved."""


def main() -> None:
    """Runs the steps in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="embedded name, hub id or local folder")
    parser.add_argument("--16-bit", dest="load_in_8bit", action="store_false", help="load 16/32-bit weights")
    parser.add_argument("--source", default="udhr", help="text on which activations are counted")
    parser.add_argument("--languages", default="all", help='language codes, or "all" that have the text')
    parser.add_argument("--runs", default="runs", help="folder of counts and other intermediate files")
    parser.add_argument("--seconds", type=float, default=None, help="stop after about this time, to be resumed later")
    arguments = parser.parse_args()
    build = AtlasBuild(arguments)
    try:
        build.count(arguments.source, build.languages)
        if build.is_packaged:
            build.save_packaged_sets()
            build.write_analyses()
        else:
            build.save_sets()
    except OutOfTime as stopped:
        print(f"Stopped: {stopped}. Run the same command again to resume.", flush=True)
        sys.exit(3)


class AtlasBuild:
    """The steps for one model, which is loaded when a step first needs it."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.languages = languages_of(arguments.source, arguments.languages)
        self.folder = model_dir(arguments.model, arguments.runs) / "atlas"
        self.deadline = None if arguments.seconds is None else time.monotonic() + arguments.seconds
        packaged = (EMBEDDED_MODEL, "udhr", "all", True)
        self.is_packaged = (arguments.model, arguments.source, arguments.languages, arguments.load_in_8bit) == packaged

    @functools.cached_property
    def model(self) -> tuple:
        """The model and its tokenizer."""
        return load_model(self.arguments.model, load_in_8bit=self.arguments.load_in_8bit)

    def seconds_left(self) -> float | None:
        """Returns the remaining seconds, None without a limit.

        Raises:
            OutOfTime: If there are none.
        """
        if self.deadline is None:
            return None
        if (seconds := self.deadline - time.monotonic()) < 0:
            raise OutOfTime("the time given with --seconds is used up")
        return seconds

    def count(self, source: str, languages: list[str], shards: int = SHARDS) -> None:
        """Counts activations in the languages whose counts do not exist yet."""
        folder = self.folder / source.replace("/", "--")
        missing = [code for code in languages if not (folder / f"{code}.safetensors").is_file()]
        if not missing:
            return
        print(f"Counting {len(missing)} of {len(languages)} languages on {source} ...", flush=True)
        started = time.monotonic()
        remaining = profile_atlas(*self.model, missing, folder, source, shards, seconds=self.seconds_left())
        minutes = (time.monotonic() - started) / 60
        print(f"{len(missing) - len(remaining)} languages in {minutes:.1f} minutes", flush=True)
        if remaining:
            raise OutOfTime(f"{len(remaining)} languages are not counted yet")

    def counts(self, source: str) -> ShardedProfile:
        """Reads the counts of all languages that are asked for."""
        return load_shards(self.folder / source.replace("/", "--"), languages_of(source, self.arguments.languages))

    def save_sets(self) -> None:
        """Selects the neuron sets and saves them in the runs folder."""
        for top_rate in TOP_RATES:
            name = f"{self.arguments.source.replace('/', '--')}-{_percent(top_rate)}.safetensors"
            neurons = select_neurons(self.counts(self.arguments.source).profile(), top_rate)
            print(neurons.save(self.folder / name))

    def save_packaged_sets(self) -> None:
        """Selects the neuron sets and saves those that differ from the files in the package."""
        for top_rate in TOP_RATES:
            path = atlas_path(self.arguments.model, top_rate)
            neurons = select_neurons(self.counts("udhr").profile(), top_rate)
            if not (path.is_file() and same_sets(neurons, load_atlas(self.arguments.model, top_rate))):
                neurons.save(path)
            print(f"{path.name}: {len(neurons)} languages, {path.stat().st_size / 1000:.0f} kB", flush=True)

    def write_analyses(self) -> None:
        """Writes every result file that does not exist."""
        self.write_analysis("selections.json", self.selections)
        self.write_analysis("stability.json", self.stability)
        self.write_analysis("kinds.json", self.genres)
        self.write_analysis("languages.json", self.language_facts)
        self.write_analysis("families.json", family_tests)
        self.write_analysis("correlates.json", correlates)
        self.write_analysis("deactivation.json", self.deactivation)
        self.write_analysis("amplification.json", self.amplification)
        self.write_analysis("more_text.json", self.stability_with_more_text)
        self.write_analysis("cost.json", self.cost)

    def write_analysis(self, name: str, analyse: Callable[[], dict]) -> None:
        """Runs an analysis and writes its result, unless the file exists."""
        path = RESULTS / name
        if not path.is_file():
            self.seconds_left()
            started = time.monotonic()
            write_json(path, {**analyse(), **provenance()})
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)

    def selections(self) -> dict:
        """Compares the sets selected among 13, 50 and all languages."""
        by_articles = sorted(LANGUAGES, key=lambda x: -(x.wikipedia_articles or 0))
        fifty = list(dict.fromkeys([*TARGET_LANGUAGES, *CONTRAST_LANGUAGES, *(x.code for x in by_articles)]))[:50]
        groups = {"13": list(TARGET_LANGUAGES), "50": fifty, "all": self.languages}
        overlap = {
            _percent(rate): statistics.overlap_between_selections(self.counts("udhr"), groups, rate, resamples=50)
            for rate in TOP_RATES
        }
        return {"groups": {name: " ".join(codes) for name, codes in groups.items()}, "jaccard": overlap}

    def stability(self) -> dict:
        """Compares the sets selected from two halves of the declaration."""
        counts = self.counts("udhr")
        return {_percent(rate): statistics.split_half_stability(counts, rate, splits=12) for rate in TOP_RATES}

    def genres(self) -> dict:
        """Compares the sets selected from the declaration and from interface messages."""
        self.count("mediawiki", languages_of("mediawiki", "all"))
        messages = self.counts("mediawiki")
        return {
            _percent(rate): statistics.agreement_across_genres(self.counts("udhr"), messages, rate, splits=12)
            for rate in TOP_RATES
        }

    def language_facts(self) -> dict:
        """Collects what is known of each language, its neurons, its nearest languages and its place on the map."""
        scores = score_declarations(
            *self.model, self.languages, self.folder / "scores.json", seconds=self.seconds_left()
        )
        if len(scores) < len(self.languages):
            raise OutOfTime(f"{len(self.languages) - len(scores)} declarations are not scored yet")
        sets = {rate: load_atlas(self.arguments.model, rate) for rate in TOP_RATES}
        distances = statistics.jaccard_distances(sets[0.05])
        coordinates, share = statistics.classical_scaling(distances)
        facts = {}
        for i, code in enumerate(self.languages):
            language, score = get_language(code), scores[code]
            nearest = [j for j in distances[i].argsort(kind="stable") if j != i and distances[i, j] < 1][:_NEAREST]
            facts[code] = {
                "name": language.name,
                "script": language.script,
                "family": language.family,
                "stock": language.lineage[0],
                "neurons": {_percent(rate): neurons.count(code) for rate, neurons in sets.items()},
                "layers": [len(ids) for ids in sets[0.05][code]],
                "nearest": {self.languages[j]: round(1 - float(distances[i, j]), 3) for j in nearest},
                "map": [round(float(x), 4) for x in coordinates[i]],
                "tokens_per_byte": round(score["tokens"] / score["bytes"], 4),
                "tokens_per_word": None
                if language.script in UNSPACED_SCRIPTS
                else round(score["tokens"] / score["words"], 3),
                "nats_per_token": score["nats"],
                "bits_per_byte": round(score["nats"] * score["tokens"] / score["bytes"] / math.log(2), 4),
                "wikipedia_articles": language.wikipedia_articles,
            }
        return {"map_share": round(share, 4), "languages": facts}

    def deactivation(self) -> dict:
        """Measures what switching off each of 32 sets does to 32 languages."""
        codes = languages_of_many_families(_DEACTIVATED_LANGUAGES)
        neurons = load_atlas(self.arguments.model, 0.05)
        path = self.folder / "deactivation.json"
        losses = deactivation_losses(*self.model, neurons, codes, path, seconds=self.seconds_left())
        rows = row_names(codes)
        if len(losses["rows"]) < len(rows):
            raise OutOfTime(f"{len(losses['rows'])} of {len(rows)} rows are measured")
        return {"specificity": specificity(losses), **losses}

    def amplification(self) -> dict:
        """Identifies what the model writes while a set is amplified."""
        neurons = load_atlas(self.arguments.model, 0.05)
        return {"languages": {code: amplification_effect(*self.model, neurons, code) for code in AMPLIFIED_LANGUAGES}}

    def stability_with_more_text(self) -> dict:
        """Repeats `stability` on declaration and messages, for the target and contrast languages."""
        source, codes = "udhr+mediawiki", [*TARGET_LANGUAGES, *CONTRAST_LANGUAGES]
        self.count(source, codes, _SHARDS_OF_MORE_TEXT)
        counts = load_shards(self.folder / source, codes)
        return {_percent(rate): statistics.split_half_stability(counts, rate, splits=50) for rate in TOP_RATES}

    def cost(self) -> dict:
        """Returns the tokens that are counted in each language, and the number of weights that each token meets."""
        model, _ = self.model
        embeddings = model.get_input_embeddings().weight.numel()
        weights = sum(p.numel() for p in body_of(model).parameters()) - embeddings
        counts = self.counts("udhr")
        tokens = counts.num_shards * counts.shard_tokens
        return {"weights_in_layers": weights, "languages": len(counts.languages), "tokens_per_language": tokens}


def _percent(top_rate: float) -> str:
    return f"{100 * top_rate:g}"


def same_sets(first: NeuronSets, second: NeuronSets) -> bool:
    """Compares two neuron sets by content: files may differ, since safetensors does not fix the order of metadata."""
    if first.metadata != second.metadata:
        return False
    return all(a.equal(b) for lang in first for a, b in zip(first[lang], second[lang], strict=True))


def languages_of(source: str, requested: str) -> list[str]:
    """Returns the requested language codes; "all" stands for those in which the source has enough text."""
    if requested != "all":
        return [get_language(code).code for code in requested.split()]
    if source == "mediawiki":
        return [code for code in languages_in(source) if _has_enough_messages(code)]
    return languages_in(source)


def _has_enough_messages(code: str) -> bool:
    """Returns whether enough messages are translated, and enough of them are long enough to be counted on."""
    language = get_language(code)
    messages, english = (interface_messages(x) for x in (language.code_for("mediawiki"), "en"))
    if len(messages) < _MIN_MESSAGES:
        return False
    translated = [text for key, text in messages.items() if code == "en" or text != english.get(key)]
    long_enough = sum(num_words(text, language.script) >= embedded.MIN_WORDS for text in translated)
    return long_enough >= _MIN_LONG_MESSAGES


def languages_of_many_families(number: int) -> list[str]:
    """Returns the target and contrast languages, then the language with the largest Wikipedia of each other family."""
    chosen = [get_language(code) for code in (*TARGET_LANGUAGES, *CONTRAST_LANGUAGES)]
    candidates = [get_language(code) for code in languages_of("mediawiki", "all")]
    for language in sorted(candidates, key=lambda x: -(x.wikipedia_articles or 0)):
        if language.family not in {x.family for x in chosen} and len(chosen) < number:
            chosen.append(language)
    return [x.code for x in chosen]


def family_tests() -> dict:
    """Tests whether the overlap between neuron sets follows families or scripts."""
    by_rate = {}
    for rate in TOP_RATES:
        sets = load_atlas(EMBEDDED_MODEL, rate)
        rows = [i for i, code in enumerate(sets) if sets.count(code)]
        distances = statistics.jaccard_distances(sets)[numpy.ix_(rows, rows)]
        languages = [get_language(sets.languages[i]) for i in rows]
        groups = {
            "all languages": list(range(len(languages))),
            "Latin script only": [i for i, x in enumerate(languages) if x.script == "Latn"],
            "Indo-European only": [i for i, x in enumerate(languages) if x.lineage[0] == "Indo-European"],
        }
        by_rate[_percent(rate)] = {
            name: _tests_of_group(distances[numpy.ix_(group, group)], [languages[i] for i in group])
            for name, group in groups.items()
        } | {"languages without neurons": len(sets) - len(rows)}
    return by_rate


def _tests_of_group(overlap: numpy.ndarray, languages: Sequence[Language]) -> dict:
    mantel, by_label = statistics.mantel_test, statistics.label_distances
    tree = statistics.cophenetic_distances(statistics.average_linkage(overlap))
    genealogy = statistics.family_distances([x.code for x in languages])
    tests = {
        "languages": len(languages),
        "tree and overlap": mantel(tree, overlap, permutations=99),
        "tree and genealogy": mantel(tree, genealogy),
        "overlap and genealogy": mantel(overlap, genealogy),
    }
    script = by_label([x.script for x in languages])
    if script.any():
        tests |= {
            "overlap and script": mantel(overlap, script),
            "overlap and genealogy, controlling for script": mantel(overlap, genealogy, script),
            "overlap and script, controlling for genealogy": mantel(overlap, script, genealogy),
        }
    labels = {
        "stock": [x.lineage[0] for x in languages],
        "branch": [x.family for x in languages],
        "script": [x.script for x in languages],
    }
    for name, values in labels.items():
        if len(set(values)) > 1:
            tests[f"tree and {name}"] = mantel(tree, by_label(values))
            tests[f"silhouette of {name}"] = statistics.silhouette_test(overlap, values)
    return tests


def correlates() -> dict:
    """Correlates the number of neurons with facts about the languages: in all languages, and in those in Latin script."""
    languages = list(load_results(RESULTS)["languages"]["languages"].values())
    groups = {"": languages, ", Latin script only": [x for x in languages if x["script"] == "Latn"]}
    facts = ("tokens_per_byte", "tokens_per_word", "nats_per_token", "bits_per_byte", "wikipedia_articles")
    return {
        rate + name: {
            fact: statistics.spearman_test([x["neurons"][rate] for x in group], [x[fact] for x in group])
            for fact in facts
        }
        for rate in map(_percent, TOP_RATES)
        for name, group in groups.items()
    }


if __name__ == "__main__":
    main()
