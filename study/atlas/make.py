"""Makes the atlas of language neurons: counts, the sets that ship, and the analyses in book/results/atlas/.

Run: python -m study.atlas.make [--model ...] [--source udhr] [--languages "yo is ..."] [--seconds 240]
Every step finds what is there and goes on from it, so the script may be stopped and started again; with --seconds it stops
by itself. For another model or other text it counts, selects and saves the sets under the runs folder.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from pathlib import Path

from ssetools.embedded_model import EMBEDDED_MODEL
from ssetools.files import model_dir, provenance, write_json
from ssetools.languages import (
    CONTRAST_LANGUAGES,
    LANGUAGES,
    TARGET_LANGUAGES,
    UNSPACED_SCRIPTS,
    get_language,
    num_words,
)
from ssetools.models import body_of, load_model
from ssetools.neurons.selection import select_neurons
from ssetools.neurons.sets import atlas_path, load_atlas
from ssetools.text import embedded
from ssetools.text.sources import languages_in
from study.atlas import effects as atlas_effects
from study.atlas import statistics as atlas_statistics
from study.atlas.shards import SHARDS, TOP_RATES, interface_messages, load_shards, profile_atlas

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results" / "atlas"
_MANY_MESSAGES, _LONG_MESSAGES = 1500, 150
_DEACTIVATED = 32
_MORE_SHARDS = 64
_NEAREST = 5


class Stopped(Exception):
    """The time that was given is over; what is done is kept."""


def main() -> None:
    """Runs the steps in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="embedded name, hub id or local folder")
    parser.add_argument("--16-bit", dest="load_in_8bit", action="store_false", help="load 16/32-bit weights")
    parser.add_argument("--source", default="udhr", help="text to count on")
    parser.add_argument("--languages", default="all", help='codes, or "all" that have the text')
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--seconds", type=float, default=None, help="stop after about this long, to go on later")
    arguments = parser.parse_args()
    work = Work(arguments)
    try:
        work.count(arguments.source, work.languages)
        if work.ships:
            work.ship()
            work.analyse()
        else:
            work.save()
    except Stopped as stopped:
        print(f"Stopped: {stopped}. Start again to go on.", flush=True)
        sys.exit(3)


class Work:
    """The steps for one model, with the model loaded when a step first needs it."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.languages = languages_of(arguments.source, arguments.languages)
        self.folder = model_dir(arguments.model, arguments.runs) / "atlas"
        self.end = None if arguments.seconds is None else time.monotonic() + arguments.seconds
        standard = (EMBEDDED_MODEL, "udhr", "all", True)
        self.ships = (arguments.model, arguments.source, arguments.languages, arguments.load_in_8bit) == standard

    @functools.cached_property
    def model(self):
        return load_model(self.arguments.model, load_in_8bit=self.arguments.load_in_8bit)

    def left(self) -> float | None:
        """Returns the seconds that are left, None without a limit."""
        if self.end is not None and time.monotonic() > self.end:
            raise Stopped("the time is over")
        return None if self.end is None else self.end - time.monotonic()

    def count(self, source: str, languages: list[str], shards: int = SHARDS) -> None:
        folder = self.folder / source.replace("/", "--")
        missing = [code for code in languages if not (folder / f"{code}.safetensors").is_file()]
        if missing:
            print(f"Counting {len(missing)} of {len(languages)} languages on {source} ...", flush=True)
            started = time.monotonic()
            rest = profile_atlas(*self.model, missing, folder, source, shards, seconds=self.left())
            minutes = (time.monotonic() - started) / 60
            print(f"{len(missing) - len(rest)} languages in {minutes:.1f} minutes", flush=True)
            if rest:
                raise Stopped(f"{len(rest)} languages are not counted yet")

    def shards(self, source: str):
        return load_shards(self.folder / source.replace("/", "--"), languages_of(source, self.arguments.languages))

    def save(self) -> None:
        for top_rate in TOP_RATES:
            name = f"{self.arguments.source.replace('/', '--')}-{100 * top_rate:g}.safetensors"
            neurons = select_neurons(self.shards(self.arguments.source).profile(), top_rate)
            print(neurons.save(self.folder / name))

    def ship(self) -> None:
        for top_rate in TOP_RATES:
            path = atlas_path(self.arguments.model, top_rate)
            neurons = select_neurons(self.shards("udhr").profile(), top_rate)
            if not (path.is_file() and same_sets(neurons, load_atlas(self.arguments.model, top_rate))):
                neurons.save(path)
            print(f"{path.name}: {len(neurons)} languages, {path.stat().st_size / 1000:.0f} kB", flush=True)

    def analyse(self) -> None:
        """Writes every result file that is not there."""
        self.step("selections.json", self.selections)
        self.step("stability.json", self.stability)
        self.step("kinds.json", self.kinds)
        self.step("languages.json", self.about_languages)
        self.step("families.json", families)
        self.step("correlates.json", correlates)
        self.step("deactivation.json", self.deactivation)
        self.step("more_text.json", self.more_text)
        self.step("cost.json", self.cost)

    def step(self, name: str, function) -> None:
        path = RESULTS / name
        if not path.is_file():
            self.left()
            started = time.monotonic()
            found = function()
            write_json(path, {**found, **provenance()})
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)

    def selections(self) -> dict:
        most = sorted(LANGUAGES, key=lambda x: -(x.wikipedia_articles or 0))
        fifty = list(dict.fromkeys([*TARGET_LANGUAGES, *CONTRAST_LANGUAGES, *(x.code for x in most)]))[:50]
        groups = {"13": list(TARGET_LANGUAGES), "50": fifty, "all": self.languages}
        overlap = {
            f"{100 * rate:g}": atlas_statistics.overlap_by_languages(self.shards("udhr"), groups, rate, times=50)
            for rate in TOP_RATES
        }
        return {"groups": {name: " ".join(codes) for name, codes in groups.items()}, "jaccard": overlap}

    def stability(self) -> dict:
        counts = self.shards("udhr")
        return {f"{100 * rate:g}": atlas_statistics.split_half_stability(counts, rate, times=12) for rate in TOP_RATES}

    def kinds(self) -> dict:
        self.count("mediawiki", languages_of("mediawiki", "all"))
        messages = self.shards("mediawiki")
        return {
            f"{100 * rate:g}": atlas_statistics.across_kinds(self.shards("udhr"), messages, rate, times=12)
            for rate in TOP_RATES
        }

    def about_languages(self) -> dict:
        scores = atlas_effects.score_declarations(
            *self.model, self.languages, self.folder / "scores.json", seconds=self.left()
        )
        if len(scores) < len(self.languages):
            raise Stopped(f"{len(self.languages) - len(scores)} declarations are not scored yet")
        sets = {rate: load_atlas(self.arguments.model, rate) for rate in TOP_RATES}
        table = atlas_statistics.distances(sets[0.05])
        places, share = atlas_statistics.classical_map(table)
        rows = {}
        for i, code in enumerate(self.languages):
            language, one = get_language(code), scores[code]
            near = [j for j in table[i].argsort(kind="stable") if j != i and table[i, j] < 1][:_NEAREST]
            rows[code] = {
                "name": language.name,
                "script": language.script,
                "family": language.family,
                "stock": language.lineage[0],
                "neurons": {f"{100 * rate:g}": one_set.count(code) for rate, one_set in sets.items()},
                "layers": [len(ids) for ids in sets[0.05][code]],
                "nearest": {self.languages[j]: round(1 - float(table[i, j]), 3) for j in near},
                "map": [round(float(x), 4) for x in places[i]],
                "tokens_per_byte": round(one["tokens"] / one["bytes"], 4),
                "tokens_per_word": None
                if language.script in UNSPACED_SCRIPTS
                else round(one["tokens"] / one["words"], 3),
                "nats_per_token": one["nats"],
                "bits_per_byte": round(one["nats"] * one["tokens"] / one["bytes"] / math.log(2), 4),
                "wikipedia_articles": language.wikipedia_articles,
            }
        return {"map_share": round(share, 4), "languages": rows}

    def deactivation(self) -> dict:
        codes = spread_languages(_DEACTIVATED)
        neurons = load_atlas(self.arguments.model, 0.05)
        losses = atlas_effects.deactivation_losses(
            *self.model, neurons, codes, self.folder / "deactivation.json", seconds=self.left()
        )
        names = atlas_effects.row_names(codes)
        if len(losses["rows"]) < len(names):
            raise Stopped(f"{len(losses['rows'])} of {len(names)} rows are measured")
        return {"specificity": atlas_effects.specificity(losses), **losses}

    def more_text(self) -> dict:
        """Stability where there is more text: declaration and messages of the targets and the contrasts."""
        source, codes = "udhr+mediawiki", [*TARGET_LANGUAGES, *CONTRAST_LANGUAGES]
        self.count(source, codes, _MORE_SHARDS)
        counts = load_shards(self.folder / source, codes)
        return {f"{100 * rate:g}": atlas_statistics.split_half_stability(counts, rate, times=50) for rate in TOP_RATES}

    def cost(self) -> dict:
        """What counting costs: tokens, and the weights that each token passes."""
        model, _ = self.model
        embeddings = model.get_input_embeddings().weight.numel()
        weights = sum(p.numel() for p in body_of(model).parameters()) - embeddings
        counts = self.shards("udhr")
        tokens = counts.num_shards * counts.shard_tokens
        return {"weights_in_layers": weights, "languages": len(counts.languages), "tokens_per_language": tokens}


def same_sets(first, second) -> bool:
    """Says whether two files of sets are the same: safetensors does not write the same facts in the same order."""
    if first.metadata != second.metadata:
        return False
    return all(a.equal(b) for lang in first for a, b in zip(first[lang], second[lang], strict=True))


def languages_of(source: str, asked: str) -> list[str]:
    """Returns the codes asked for; "all" are those that the source is known to hold, with enough text."""
    if asked != "all":
        return [get_language(code).code for code in asked.split()]
    if source == "mediawiki":
        return [code for code in languages_in(source) if _has_many_messages(code)]
    return languages_in(source)


def _has_many_messages(code: str) -> bool:
    """Whether enough messages are translated, and enough of these long enough, for the sample that is counted on."""
    language = get_language(code)
    found, english = (interface_messages(x) for x in (language.code_for("mediawiki"), "en"))
    if len(found) < _MANY_MESSAGES:
        return False
    translated = [m for key, m in found.items() if code == "en" or m != english.get(key)]
    return sum(num_words(m, language.script) >= embedded.MIN_WORDS for m in translated) >= _LONG_MESSAGES


def spread_languages(number: int) -> list[str]:
    """Returns the targets, the contrasts, and the most written language of every other branch that has messages."""
    chosen = [get_language(code) for code in (*TARGET_LANGUAGES, *CONTRAST_LANGUAGES)]
    able = [get_language(code) for code in languages_of("mediawiki", "all")]
    for language in sorted(able, key=lambda x: -(x.wikipedia_articles or 0)):
        if language.family not in {x.family for x in chosen} and len(chosen) < number:
            chosen.append(language)
    return [x.code for x in chosen]


def families() -> dict:
    """Tests whether the overlaps follow families or scripts."""
    found = {}
    for rate in TOP_RATES:
        sets = load_atlas(EMBEDDED_MODEL, rate)
        codes = [code for code in sets if sets.count(code)]
        table = atlas_statistics.distances(sets)
        table = table[[sets.languages.index(c) for c in codes]][:, [sets.languages.index(c) for c in codes]]
        known = [get_language(code) for code in codes]
        groups = {
            "all languages": range(len(codes)),
            "Latin script only": [i for i, x in enumerate(known) if x.script == "Latn"],
            "Indo-European only": [i for i, x in enumerate(known) if x.lineage[0] == "Indo-European"],
        }
        found[f"{100 * rate:g}"] = {name: _tests(table, known, list(rows)) for name, rows in groups.items()}
        found[f"{100 * rate:g}"]["languages without neurons"] = len(sets) - len(codes)
    return found


def _tests(table, known, rows) -> dict:
    part, languages = table[rows][:, rows], [known[i] for i in rows]
    tree = atlas_statistics.cophenetic(atlas_statistics.average_linkage(part))
    kin = atlas_statistics.family_distances([x.code for x in languages])
    tests = {
        "languages": len(rows),
        "tree against overlaps": atlas_statistics.matrix_correlation(tree, part, times=99),
        "tree against genealogy": atlas_statistics.matrix_correlation(tree, kin),
        "overlaps against genealogy": atlas_statistics.matrix_correlation(part, kin),
    }
    script = atlas_statistics.label_distances([x.script for x in languages])
    if script.any():
        tests |= {
            "overlaps against script": atlas_statistics.matrix_correlation(part, script),
            "overlaps against genealogy, script taken out": atlas_statistics.matrix_correlation(part, kin, script),
            "overlaps against script, genealogy taken out": atlas_statistics.matrix_correlation(part, script, kin),
        }
    labels = {"stock": [x.lineage[0] for x in languages], "branch": [x.family for x in languages]}
    labels |= {"script": [x.script for x in languages]}
    for name, one in labels.items():
        if len(set(one)) > 1:
            tests[f"tree against {name}"] = atlas_statistics.matrix_correlation(
                tree, atlas_statistics.label_distances(one)
            )
            tests[f"silhouette of {name}"] = atlas_statistics.silhouette(part, one)
    return tests


def correlates() -> dict:
    """Correlates the number of neurons with what is known of each language, in all and where the script is the same."""
    rows = list(json.loads((RESULTS / "languages.json").read_text(encoding="utf-8"))["languages"].values())
    groups = {"": rows, ", Latin script only": [x for x in rows if x["script"] == "Latn"]}
    facts = ("tokens_per_byte", "tokens_per_word", "nats_per_token", "bits_per_byte", "wikipedia_articles")
    return {
        rate + name: {
            fact: atlas_statistics.rank_correlation([x["neurons"][rate] for x in group], [x[fact] for x in group])
            for fact in facts
        }
        for rate in (f"{100 * rate:g}" for rate in TOP_RATES)
        for name, group in groups.items()
    }


if __name__ == "__main__":
    main()
