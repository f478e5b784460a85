"""The pages include every generated fragment, show the numbers of the result files, and build without results."""

import json
import re

import pytest
from making import (
    all_languages,
    claims,
    compared,
    contents,
    diagrams,
    figures,
    fooling,
    guide,
    harm,
    language_pages,
    plane,
    results,
    scoreboard,
    tables,
)

from ssetools.languages import LANGUAGES
from study.harm.recipes import LAPE, LORA_32

BOOK = results.BOOK
PAGES = sorted([*BOOK.glob("*.md"), *BOOK.glob("*.ipynb")])
SOURCES = (tables, compared, harm, fooling, claims, guide, plane, scoreboard, all_languages)


def fragments():
    return {f"{name}.md": text for source in SOURCES for name, text in source.fragments().items()}


def score(scale, windows=6):
    return {
        "perplexity": 9.0 * scale,
        "window_losses": [scale * (90 + i) for i in range(windows)],
        "window_tokens": [30] * windows,
    }


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Results with easily recognised numbers, in the format of the result files."""
    cell = {"value": -10.0, "low": -12.0, "high": -8.0, "units": 9}
    apart = {"value": 3.0, "low": 1.0, "high": 5.0, "units": 9, "verdict": "better"}
    measures = [*compared.MEASURE_TITLES, "others, articles"]
    method = {
        "learning_rate": 1e-4,
        "parameters": 1000,
        "optimizer_bytes": 8_000_000,
        "adapter_bytes": 4_000_000,
        "seeds": [0, 1],
        "changes": {measure: cell for measure in measures},
    }
    one = {
        "name": "Yoruba",
        "ablations": [{"method": "lape", "max_tokens": 4096, "changes": method["changes"]}],
        "missing": ["Yoruba lacks a run."],
        "base_perplexity": {"base-8bit": {"sentences": {"yo": 100.0, "en": 9.0}}},
        "search": [
            {"method": "lape", "chosen": True, "at_edge": True},
            {"method": "random", "chosen": True, "at_edge": False},
            {"method": "random", "chosen": False, "at_edge": True},
        ],
        "methods": {
            "lape": {**method, "minus_lape": None},
            "random": {**method, "minus_lape": {measure: apart for measure in measures}},
        },
        "by_rate": {"lape": [{"learning_rate": x, "changes": method["changes"]} for x in (3e-5, 1e-4)]},
        "sentences": {
            "lape_loses": ["Yoruba articles: lape loses to random."],
            "drift_at_equal_gain": ["Yoruba -3.0%, as lape: random drifts twice as far."],
        },
    }
    over = {"lape": {measure: cell for measure in measures}, "random": {measure: cell for measure in measures}}
    minus = {"random": {measure: apart for measure in measures}}
    summary = {"languages": {"yo": one}, "over_languages": over, "over_languages_minus_lape": minus}
    langs = {"yo": score(1.0), "is": score(1.0), "en": score(1.0)}
    better = {"yo": score(0.9), "is": score(0.97), "en": score(1.02)}
    rates = [(m, rate, 1 - k / 50) for m, k in (("lape", 1), ("random", 2)) for rate in (3e-4, 3e-5)]
    kinds = ("trained on", "same document", "messages", "sentences")
    after = {"counted": 1.0, "ignored": 3.0}
    experiments = {
        "bos": {
            "base": {"with": langs, "without": langs},
            "trained with": {"with": better, "without": better},
            "trained without": {"with": langs, "without": better},
        },
        "memorised": {"passes": {n: {kind: score(1 - int(n) / 20) for kind in kinds} for n in ("0", "1", "8")}},
        "rates": {
            "base": score(1.0),
            "runs": [{"method": m, "learning_rate": rate, "scores": score(s)} for m, rate, s in rates],
        },
        "padding": {
            "padding share": 0.4,
            "base": {"counted": 2.0, "ignored": 4.0},
            "runs": {name: {"history": [3.0, 2.0, 1.0], "after": after} for name in ("counted", "ignored")},
        },
        "merging": {
            **{name: score(1.0) for name in ("8-bit base", "merged into int8", "16-bit base")},
            **{name: score(0.9) for name in ("delta beside 8-bit", "merged into 16-bit")},
            "projections": [{"projection": "gate", "step": 1e-3, "delta": 1e-4, "error": 0.9}],
        },
    }
    layers = [{"layer": k, "quantiles": [3.0 - k, 15.0, 18.0, 20.0, 22.0]} for k in range(3)]
    texts = {x: {"tokens": 100 * (k + 1), "bits": 500.0 * (k + 1)} for k, x in enumerate(("en", "is", "yo"))}
    files = {
        f"compare/{results.MODEL}/summary.json": summary,
        "fooling.json": {"model": "m", "lang": "yo", "experiments": experiments},
        "inside.json": {"same_text": texts, "layers": layers},
        "benchmarks/training.json": {
            "rows": [
                {"model": results.MODEL, "bits": 8, "variant": v, "seconds": s, "over_limit": s, "peak_gib": 2.0}
                for v, s in (("limit", 1.0), ("lape", 1.1), ("clone", 3.0))
            ]
        },
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    for code in ("yo", "is"):
        (tmp_path / f"{code}.json").write_text((BOOK / "results" / f"{code}.json").read_text())
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(
        tables, "read", lambda name: json.loads((BOOK / "speakers.json").read_text()) if "speakers" in name else None
    )


def test_numbers_are_formatted():
    assert results.percent(-4.44) == "−4.4%"
    assert results.percent(0.04) == results.percent(-0.04) == "0.0%"
    assert results.percent(10.04) == "+10.0%"
    assert results.percent(170141.03) == "+170,141%"
    assert results.format_rate(3e-5) == "3e-5"
    assert results.format_rate(27e-4) == "2.7e-3"
    assert results.with_interval({"percent": 1.0, "low": -0.26, "high": 2.0}) == "+1.0% (−0.3\u00a0to\u00a0+2.0)"
    assert results.with_interval({"percent": 1.0, "low": None, "high": None}) == "+1.0%"
    assert results.join_words(["a", "b", "c"]) == "a, b and c"
    assert tables.format_people(31_761_816) == "32 million"
    assert tables.format_people(469_730) == "470,000"


def test_pages_include_every_fragment():
    made = {*fragments(), *figures.draw_all()}
    included = {name for page in PAGES for name in re.findall(r"\{include\} _generated/([\w.-]+)", page.read_text())}
    assert included == {name for name in made if name.endswith(".md")}


def test_every_substitution_is_defined():
    numbers = {**results.substitutions(), **contents.links()}
    for page in PAGES:
        for name in re.findall(r"\{\{ *([\w.]+) *\}\}", page.read_text(encoding="utf-8")):
            first, _, second = name.partition(".")
            found = numbers[first][second] if second else numbers[first]
            assert isinstance(found, str), f"{page.name}: {name}"


def test_pages_without_results_say_which_command_makes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "read", lambda name: json.loads((BOOK / "speakers.json").read_text()))
    made = fragments()
    assert "No results yet: Maltese" in made["not-yet.md"]
    assert made["gallery.md"].count("No results yet") == 13
    for name in ("bos", "memorised", "rates", "padding", "merging"):
        assert f"--only {name}`" in made[f"fooling-{name}.md"]
    assert "make compare" in made["compare-tables.md"]
    assert {text for name, text in figures.draw_all().items() if name == "figure-gains.md"} == {""}


def test_tables_and_sentences_show_the_results(made_up):
    made = fragments()
    assert "| lape | −10.0%<br><small>(−12.0\u00a0to\u00a0−8.0)</small> |" in made["compare-tables.md"]
    assert (
        "| random | 9 | −10.0%<br><small>(−12.0\u00a0to\u00a0−8.0)</small> | +3.0% worse |" in made["compare-mean.md"]
    )
    assert "| random neurons of the same layers | Yoruba | – | – |" in made["claim-beats.md"]
    assert "On average over 9 languages" in made["claim-beats.md"]
    assert "is: random neurons of the same layers +3.0%" in made["claim-beats.md"]
    assert (
        "the other languages' sentences by −10.0% (−12.0\u00a0to\u00a0−8.0) with Yoruba trained at 1e-4"
        in made["claim-kept.md"]
    )
    assert "- Yoruba articles: lape loses to random." in made["compare-loses.md"]
    assert "at the edge of its grid in Yoruba (lape):" in made["compare-edges.md"]
    assert "| lora | LoRA of rank 32 on gate, up and down projections | 8-bit |" in made["compare-methods.md"]
    assert "3.00 seconds and 2.00 GiB" in made["clone.md"]
    assert "Measured without BOS, as it was trained, the model improves in 2 of 3 languages" in made["fooling-bos.md"]
    assert "it improves in none of 3" in made["fooling-bos.md"]
    assert "40% of the tokens are padding" in made["fooling-padding.md"]
    assert "| gate | 1.0e-03 | 1.0e-04 | 90% |" in made["fooling-merging.md"]
    assert "No results yet: Maltese, Afrikaans" in made["not-yet.md"]
    assert "on average over 9 languages" in made["front-findings.md"]
    assert "This is better than with random neurons of the same layers." in made["front-findings.md"]
    assert "| 4,096 tokens | Yoruba | −10.0%" in made["which-amounts.md"]
    near = "| 2,000 tokens | Yoruba −10.0% (−12.0\u00a0to\u00a0−8.0), with 4,096 tokens |"
    assert near in made["your-amounts.md"]
    assert "| 200,000 tokens | not measured |" in made["your-amounts.md"]
    assert "| `lape` | the language's neurons (LAPE) | 8-bit | 2.0 GiB | 1.1 s | 4.0 MB |" in made["which-costs.md"]
    assert (
        "| [Better than random neurons of the same layers](claim-beats) | **confirmed** | perplexity +3.0%"
        in (made["scoreboard.md"])
    )
    assert "ქართული" in made["gallery.md"]
    assert 'lang="ne">नेपाली' in made["gallery.md"]


@pytest.mark.parametrize(("value", "low", "high", "status"), [(3, 1, 5, "YES"), (-3, -5, -1, "NO"), (3, -1, 5, "NO")])
def test_a_claim_is_confirmed_if_its_interval_excludes_zero(value, low, high, status, monkeypatch):
    cell = {"value": value, "low": low, "high": high, "units": 13}
    found = {"over_languages_minus_lape": {"full": {"target, sentences": cell}}}
    monkeypatch.setattr(scoreboard, "summary", lambda: found)
    assert scoreboard.against("full")[0] == getattr(scoreboard, status)
    assert scoreboard.against("lora") == (scoreboard.UNTESTED, scoreboard.UNMEASURED)


def test_the_plane_has_the_mean_of_each_method_along_its_scale(tmp_path, monkeypatch):
    for lang, recipe, gain in (
        ("is", LAPE, -0.4),
        ("yo", LAPE, -0.6),
        ("is", LORA_32, -0.8),
        ("yo", LORA_32, -0.8),
        ("lt", LAPE, 9),
    ):
        curve = [
            {"scale": s, "target": gain * s, "drift": 0.03 * s * s, "served": {"en": 0.02 * s}, "neighbours": -0.01 * s}
            for s in (0.0, 1 / 3, 2 / 3, 1.0)
        ]
        path = tmp_path / "harm" / results.MODEL / lang / f"{recipe.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"curve": curve}))
    compared = {"lape": {"label": LAPE.label}, "lora-32": {"label": LORA_32.label}}
    monkeypatch.setattr(harm, "summary", lambda: {"languages": ["is", "yo"], "recipes": compared})
    monkeypatch.setattr(plane, "RESULTS", tmp_path)
    data = plane.along_scales()
    assert [x["name"] for x in data["methods"]] == [harm.TITLES["lape"], harm.TITLES["lora-32"]]
    half, full = data["methods"][0]["settings"][10], data["methods"][0]["settings"][20]
    assert half == {"at": "0.50", "gain": -25.0, "drift": 0.0075, "served": 1.0, "neighbours": -0.5}
    assert full["gain"] == -50.0, "Lithuanian, which lacks a method, is left out"
    assert "Mean over Icelandic and Yoruba" in data["note"]


def test_the_plane_has_learning_rates_while_there_is_no_curve_along_the_scale(monkeypatch):
    monkeypatch.setattr(harm, "summary", lambda: None)
    data = json.loads(re.search(r"json\">(.*)</script>", plane.fragments()["plane"])[1])
    assert data["dial"] == "learning rate"
    assert all(x["settings"][0] == {"at": "0", "gain": 0.0, "drift": 0.0, "others": 0.0} for x in data["methods"])
    assert max(x["drift"] for method in data["methods"] for x in method["settings"]) <= 0.15


def test_every_language_is_listed_with_its_texts():
    rows = all_languages.table().splitlines()[2:]
    assert len(rows) == len(LANGUAGES)
    hausa = next(row for row in rows if "`ha`" in row)
    assert hausa.startswith("| Hausa ")
    assert "messages, SIB-200, BELEBELE, FineWeb2 | 13 |" in hausa


def test_the_page_of_a_language_says_what_was_measured():
    pages = language_pages.pages()
    assert pages.keys() == results.metrics_by_language().keys()
    maltese = pages["mt"]
    moved = results.with_interval(results.metrics_by_language()["mt"]["summary"]["sentences"]["target"])
    assert maltese.startswith("# Maltese\n")
    assert f"changes its perplexity on the unseen genre by {moved}" in maltese
    assert "mt-gain.png" in maltese
    assert language_pages.pictures()["mt-gain.png"].startswith(b"\x89PNG")


def test_a_sample_that_repeats_a_word_is_named():
    assert language_pages.repetitions("base: one two three\ntuned: " + "again " * 7) == (
        "The output of *tuned* has the word *again* 7 times."
    )
    assert language_pages.repetitions("base: " + "the " * 9) == "", "short words are frequent in any text"


def test_every_figure_is_drawn_for_both_themes_with_its_values_as_text(made_up):
    made = figures.draw_all()
    drawn = {name.removesuffix(".md").removeprefix("figure-") for name in made if name.endswith(".md")}
    assert drawn == {
        *("pipeline", "subnetwork", "beside", "gains", "methods", "harm", "same-text", "layers"),
        *(f"fooling-{name}" for name in ("bos", "memorised", "rates", "padding", "merging")),
    }
    alternatives = {}
    for name in drawn - {"harm"}:  # of a summary of its own
        for theme in figures.THEMES:
            assert made[f"{name}-{theme}.svg"].startswith(("<svg", "<?xml"))
        light, dark = re.findall(r"^:alt: (.+)$", made[f"figure-{name}.md"], re.MULTILINE)
        assert light == dark
        alternatives[name] = light
    values = results.metrics_by_language()["yo"]["summary"]["sentences"]
    assert f"Yoruba {results.percent(values['target']['percent'])} on the unseen genre" in alternatives["gains"]
    assert "Yoruba: lape −10.0%, random −10.0%" in alternatives["methods"]
    assert "Icelandic 2.0 and 2.0; Yoruba 3.0 and 3.0" in alternatives["same-text"]
    assert "below 3.0 in layer 0, 2.0 in layer 1, 1.0 in layer 2" in alternatives["layers"]
    assert "Yoruba −" in alternatives["fooling-bos"]
    assert "without, 0.0% with" in alternatives["fooling-bos"]
    assert "merged into int8" in alternatives["fooling-merging"]
    assert made["gains-light.svg"] != made["gains-dark.svg"]
    assert figures.draw_all() == made, "the same results draw the same files"


def test_the_contents_list_every_executed_notebook(tmp_path, monkeypatch):
    toc = contents.TOC.read_text(encoding="utf-8")
    assert contents.with_notebooks(toc) == toc, "run: PYTHONPATH=book python -m making.contents"
    assert "- file: book/languages/is\n" in toc
    monkeypatch.setattr(contents, "BOOK", tmp_path)
    assert contents.links()["link_atlas"] == "the atlas"
    monkeypatch.setattr(contents, "metrics_by_language", lambda: {"ka": {}})
    for name in ("compare/06_compare", "languages/yo/03_finetune", "atlas/07_atlas"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.ipynb").touch()
    few = contents.with_notebooks(toc)
    assert re.findall(r"file: book/((?:languages|compare|atlas)/\S+)", few) == [
        *("languages/ka", "languages/yo/03_finetune", "compare/06_compare", "atlas/07_atlas"),
    ]
    assert contents.with_notebooks(few) == few
    assert contents.links()["link_atlas"] == "[the atlas](atlas/07_atlas.ipynb)"
    assert contents.links()["link_compare"] == "[every method compared](compare/06_compare.ipynb)"


def test_the_diagram_of_the_readme_is_current():
    drawn = (BOOK / "figures" / "pipeline.svg").read_text(encoding="utf-8")
    assert drawn == diagrams.pipeline(diagrams.PAPERS["readme"])


def test_the_description_of_the_atlas_has_its_results(monkeypatch):
    r, test = {"r": 0.3, "p": 0.001}, "overlap and {}"
    files = {
        "families": {
            "5": {
                "all languages": {
                    test.format(f"{x}, controlling for {y}"): r
                    for x, y in (("genealogy", "script"), ("script", "genealogy"))
                }
            }
        },
        "more_text": {"5": {"200": {"mean": {"jaccard": 0.4}}, "1600": {"mean": {"jaccard": 0.77}}}},
        "kinds": {"5": {"mean": {"share": 0.581}}},
        "deactivation": {"specificity": {"yo": {"fails": False}, "en": {"fails": True}, "is": {"fails": False}}},
    }
    monkeypatch.setattr(claims, "read", lambda name: files.get(name.removeprefix("atlas/").removesuffix(".json")))
    said = claims.describe_atlas()
    for part in ("2 of 3 sets", "1,600 tokens each agree with a Jaccard index of 0.77", "58%", "r = 0.30, p = 0.001"):
        assert part in said
    del files["more_text"]
    assert claims.describe_atlas() == ""


@pytest.fixture
def equal_harm(tmp_path, monkeypatch):
    """A summary of the study with easily recognised numbers."""

    def means(gain):
        cell = {"mean": gain, "low": gain - 2, "high": gain + 2, "languages": 3}
        small = {"mean": 0.5, "low": None, "high": None, "languages": 3}
        measures = dict.fromkeys(("drift", "neighbours", "english", "served", "scale", "validation"), small)
        return dict.fromkeys(harm.LIMIT_TITLES, {"gain": cell, **measures})

    def single(gain):
        scores = {
            "gain": gain,
            "sib200": gain,
            "ntrex": gain - 1,
            "same genre": gain - 20,
            "worst": "lt",
            "worst_change": 7.0,
        }
        return dict.fromkeys(harm.LIMIT_TITLES, scores)

    def difference(mean):
        return dict.fromkeys(harm.LIMIT_TITLES, {"mean": mean, "low": mean - 1, "high": mean + 1, "languages": 3})

    gains = {"lape": -45.0, "lora": -35.0, "full": -44.5}
    found = {
        "languages": ["is", "yo", "lt"],
        "drifts": [0.01, 0.03, 0.05],
        "recipes": {
            name: {"share": 0.3, "seeds": [0], "means": means(gain), "curve": [gain / 2, gain, gain - 5]}
            for name, gain in gains.items()
        },
        "differences": {"lape": {"lora": difference(-10.0), "full": difference(-0.5)}},
        "by_language": {lang: {name: single(gain) for name, gain in gains.items()} for lang in ("is", "yo", "lt")},
    }
    (tmp_path / "harm" / results.MODEL).mkdir(parents=True)
    (tmp_path / "harm" / results.MODEL / "summary.json").write_text(json.dumps(found))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return found


def test_a_claim_at_equal_drift_is_inconclusive_if_the_interval_includes_zero(equal_harm):
    status, number = scoreboard.at_equal_drift("lora")
    assert status == scoreboard.YES
    assert number == "loss −10.0 (−11.0\u00a0to\u00a0−9.0) nats × 100 relative to it, 3 languages"
    assert scoreboard.at_equal_drift("full")[0] == scoreboard.UNCLEAR
    assert scoreboard.harm_rivals() == ["lora", "full"]


def test_the_comparison_at_equal_harm_is_shown_in_order_of_gain(equal_harm):
    made = harm.fragments()
    rows = [line.split(" | ")[0].strip("| ") for line in made["harm-means"].splitlines()[2:]]
    assert rows == [harm.TITLES[name] for name in ("lape", "full", "lora")]
    assert "| LAPE neurons | 0.3% | −45.0 |" in made["harm-means"]
    assert made["harm-default"] == ""
    chosen = {"recipe": "lape", "limit": "drift 0.03", "validation": {"lape": -45.0, "specific": -44.0}}
    assert "trains LAPE neurons: of" in harm.default_rule({**equal_harm, "winner": chosen})
    assert "| LoRA of rank 18 | −10.0<br><small>(−11.0\u00a0to\u00a0−9.0)</small> |" in made["harm-differences"]
    assert (
        "LAPE neurons −45.0, all weights −44.5 and LoRA of rank 18 −35.0. Inconclusive: the difference from all weights "
        "(ahead in 3 of 3 languages)." in made["harm-findings"]
    )
    assert "Means over 3 of 13 languages (Icelandic, Yoruba and Lithuanian), one seed." in made["harm-scope"]
    assert "Not measured in all of them yet: specific neurons" in made["harm-scope"]
    assert "Lithuanian +7.0%, by Icelandic" in made["harm-neighbours"]
    assert "| LoRA of rank 18 | −35.0 |" in made["harm-languages"]
    assert "LAPE neurons −45.0" in harm.alt_text()
    assert [len(line.get_xdata()) for line in harm.figure().axes[0].lines[:3]] == [4, 4, 4]


def test_without_a_study_the_page_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert "make equal-harm" in harm.fragments()["harm-means"]
    assert harm.figure() is None
