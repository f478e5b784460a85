"""What the atlas says: how stable its sets are, what they overlap with, and whether the overlaps follow families.

Everything is computed from counts kept in shards (`ShardedProfile`), so intervals are over resampled text. Clustering and
scaling are a few lines of numpy each: no other dependency is needed for some hundred languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy
import torch

from ssetools.evaluation.intervals import INTERVAL, signed
from ssetools.languages import get_language
from ssetools.neurons.selection import select_neurons
from ssetools.neurons.sets import NeuronSets
from study.atlas.shards import ShardedProfile


def jaccard(first: NeuronSets, second: NeuronSets, languages: Sequence[str]) -> numpy.ndarray:
    """Returns the Jaccard index of each language's two sets, [languages]; NaN where both are empty."""
    found = []
    for lang in languages:
        a, b = first.mask(lang), second.mask(lang)
        union = int((a | b).sum())
        found.append(int((a & b).sum()) / union if union else float("nan"))
    return numpy.array(found)


def overlap_by_languages(
    counts: ShardedProfile, groups: Mapping[str, Sequence[str]], top_rate: float, times: int = 30, seed: int = 0
) -> dict:
    """Compares a language's set between selections that contrast few and many languages.

    Args:
        counts: Counts of all languages.
        groups: Languages profiled together, by name, the smallest first; each holds the one before.
        top_rate: Share of all neurons selected.
        times: Resamplings of the text.
        seed: Seed of the resampling.

    Returns:
        By pair of groups ("13/50") and by language: `jaccard`, `low` and `high` (95% over resampled text; the same text
        in both selections), with the mean over languages under "mean".
    """
    names = list(groups)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    generator = torch.Generator().manual_seed(seed)

    def compared(picks):
        sets = {}
        for name, languages in groups.items():
            rows = [counts.languages.index(lang) for lang in languages]
            sets[name] = select_neurons(counts.profile(picks[rows], languages), top_rate)
        return {(a, b): jaccard(sets[a], sets[b], groups[a]) for a, b in pairs}

    shape = (len(counts.languages), counts.num_shards)
    whole = compared(torch.arange(counts.num_shards).expand(shape))
    drawn = [compared(torch.randint(counts.num_shards, shape, generator=generator)) for _ in range(times)]
    return {f"{a}/{b}": _by_language(groups[a], whole[a, b], [one[a, b] for one in drawn]) for a, b in pairs}


def _by_language(languages: Sequence[str], whole, drawn: Sequence) -> dict:
    table = numpy.stack(drawn)
    rows = dict(zip(languages, zip(whole, table.T, strict=True), strict=True))
    rows["mean"] = (numpy.nanmean(whole), numpy.nanmean(table, 1))
    return {lang: _interval(value, samples) for lang, (value, samples) in rows.items()}


def _interval(value, samples) -> dict:
    samples = samples[numpy.isfinite(samples)]
    low, high = numpy.quantile(samples, INTERVAL) if len(samples) else (None, None)
    return {"jaccard": _number(value), "low": _number(low), "high": _number(high)}


def _number(value, digits: int = 4):
    return None if value is None or not numpy.isfinite(value) else round(float(value), digits)


def split_half_stability(counts: ShardedProfile, top_rate: float, times: int = 10, seed: int = 0) -> dict:
    """Selects twice, from two parts of the text that have nothing in common, for growing parts.

    Returns:
        By tokens in each part and by language: mean `jaccard` over `times` splits, and the 95% range over them.
    """
    found = {}
    shards = 1
    while 2 * shards <= counts.num_shards:
        drawn = [
            jaccard(*(select_neurons(half, top_rate) for half in pair), counts.languages)
            for pair in counts.halves(times, shards, seed=seed)
        ]
        rows = _by_language(counts.languages, _mean_or_nan(numpy.stack(drawn)), drawn)
        # Not the mean of means: a language that has neurons in one split alone would count as much as any other.
        each = _mean_or_nan(numpy.stack(drawn).T)
        found[str(shards * counts.shard_tokens)] = rows | {"mean": _interval(numpy.nanmean(each), each)}
        shards *= 2
    return found


def _mean_or_nan(table: numpy.ndarray) -> numpy.ndarray:
    known = numpy.isfinite(table)
    total = numpy.where(known, table, 0).sum(0)
    return numpy.divide(total, known.sum(0), out=numpy.full(table.shape[1], numpy.nan), where=known.any(0))


def across_kinds(
    first: ShardedProfile, second: ShardedProfile, top_rate: float, times: int = 10, seed: int = 0
) -> dict:
    """Compares sets from two kinds of text with the ceiling: two halves of one kind.

    All parts are of half the shards, so that kind is all that differs.

    Returns:
        By language (and "mean"): `within_first`, `within_second` and `across`, mean Jaccard indices over `times` splits.
        Under "mean" also `share`, the mean across kinds divided by the mean ceiling (the geometric mean of the two
        within a kind), with `low` and `high`: 95% over resampled languages.
    """
    languages = [lang for lang in first.languages if lang in second.languages]
    drawn = {"within_first": [], "within_second": [], "across": []}
    half = first.num_shards // 2
    pairs = zip(first.halves(times, half, languages, seed), second.halves(times, half, languages, seed), strict=True)
    for pair_a, pair_b in pairs:
        a, a2, b, b2 = (select_neurons(part, top_rate) for part in (*pair_a, *pair_b))
        drawn["within_first"].append(jaccard(a, a2, languages))
        drawn["within_second"].append(jaccard(b, b2, languages))
        drawn["across"].append(jaccard(a, b, languages))
    means = {name: _mean_or_nan(numpy.stack(rows)) for name, rows in drawn.items()}
    table = {lang: {name: _number(row[i]) for name, row in means.items()} for i, lang in enumerate(languages)}
    table["mean"] = {name: _number(numpy.nanmean(row)) for name, row in means.items()}
    table["mean"] |= _share_of_ceiling(means, seed)
    return table


def _share_of_ceiling(means: Mapping[str, numpy.ndarray], seed: int, resamples: int = 2000) -> dict:
    rows = numpy.stack([means["across"], numpy.sqrt(means["within_first"] * means["within_second"])])
    rows = rows[:, numpy.isfinite(rows).all(0)]
    picks = numpy.random.default_rng(seed).integers(rows.shape[1], size=(resamples, rows.shape[1]))
    drawn = rows[:, picks].mean(2)
    low, high = numpy.quantile(drawn[0] / drawn[1], INTERVAL)
    return {"share": _number(rows[0].mean() / rows[1].mean()), "low": _number(low), "high": _number(high)}


# --- overlaps as a tree and as a map ----------------------------------------------------------------------------


def distances(neurons: NeuronSets) -> numpy.ndarray:
    """Returns 1 - Jaccard of every two languages, [languages, languages]; 1 where both sets are empty."""
    table = 1 - numpy.nan_to_num(neurons.overlap().to_numpy(dtype=float), nan=0.0)
    numpy.fill_diagonal(table, 0.0)
    return table


def average_linkage(table: numpy.ndarray) -> numpy.ndarray:
    """Clusters by average linkage.

    Args:
        table: Distances, [n, n].

    Returns:
        [n - 1, 4]: the two clusters that merge, their distance, and the size of what results. Points are clusters 0 to
        n - 1, and the k-th merge makes cluster n + k: the layout that `scipy.cluster.hierarchy` and seaborn read.
    """
    count = len(table)
    work = table.astype(float).copy()
    numpy.fill_diagonal(work, numpy.inf)
    names, sizes = list(range(count)), numpy.ones(count)
    merges = numpy.zeros((count - 1, 4))
    for step in range(count - 1):
        i, j = sorted(numpy.unravel_index(work.argmin(), work.shape))
        merges[step] = *sorted((names[i], names[j])), work[i, j], sizes[i] + sizes[j]
        merged = (sizes[i] * work[i] + sizes[j] * work[j]) / (sizes[i] + sizes[j])
        work[i], work[:, i] = merged, merged
        work[i, i] = work[j, :] = work[:, j] = numpy.inf
        names[i], sizes[i] = count + step, sizes[i] + sizes[j]
    return merges


def leaf_order(merges: numpy.ndarray) -> list[int]:
    """Returns the points in the order in which the tree draws them without crossings."""
    count = len(merges) + 1
    members = {point: [point] for point in range(count)}
    for step, (a, b, *_) in enumerate(merges):
        members[count + step] = members.pop(int(a)) + members.pop(int(b))
    return members[max(members)]


def cophenetic(merges: numpy.ndarray) -> numpy.ndarray:
    """Returns the height at which every two points first lie in one cluster, [n, n]."""
    count = len(merges) + 1
    members = {point: [point] for point in range(count)}
    heights = numpy.zeros((count, count))
    for step, (a, b, height, _) in enumerate(merges):
        left, right = members.pop(int(a)), members.pop(int(b))
        heights[numpy.ix_(left, right)] = height
        heights[numpy.ix_(right, left)] = height
        members[count + step] = left + right
    return heights


def classical_map(table: numpy.ndarray, dimensions: int = 2) -> tuple[numpy.ndarray, float]:
    """Places points so that their distances are as in the table (classical scaling).

    Returns:
        Coordinates [n, dimensions], and the share of the positive eigenvalues that they hold.
    """
    count = len(table)
    centre = numpy.eye(count) - 1 / count
    values, vectors = numpy.linalg.eigh(-0.5 * centre @ table**2 @ centre)
    order = values.argsort()[::-1][:dimensions]
    share = values[order].clip(0).sum() / values.clip(0).sum()
    return vectors[:, order] * numpy.sqrt(values[order].clip(0)), float(share)


# --- families and scripts ---------------------------------------------------------------------------------------


def family_distances(languages: Sequence[str]) -> numpy.ndarray:
    """Returns how far apart languages are in Glottolog's tree: 1 minus the share of their lineages that is common."""
    lines = [get_language(code).lineage for code in languages]
    table = numpy.ones((len(lines), len(lines)))
    for i, a in enumerate(lines):
        for j, b in enumerate(lines[:i]):
            shared = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            table[i, j] = table[j, i] = 1 - 2 * shared / (len(a) + len(b))
    numpy.fill_diagonal(table, 0.0)
    return table


def label_distances(labels: Sequence[str]) -> numpy.ndarray:
    """Returns 0 where two labels are the same and 1 where they differ."""
    names = numpy.array(labels)
    return (names[:, None] != names[None, :]).astype(float)


def matrix_correlation(
    first: numpy.ndarray, second: numpy.ndarray, given: numpy.ndarray | None = None, times: int = 999, seed: int = 0
) -> dict:
    """Correlates two tables of distances, and tests it by shuffling which language is which in one of them (Mantel).

    Args:
        first: Distances, [n, n].
        second: Distances of the same points: the table that is shuffled.
        given: A third table, which is taken out of both first by linear regression (partial Mantel test); None takes
            out nothing.
        times: Shufflings.
        seed: Seed of the shufflings.

    Returns:
        `r`; `p`, the share of shufflings (the table itself included) with at least this r; and `shufflings`.
    """
    upper = numpy.triu_indices(len(first), 1)
    if given is not None:
        first, second = (_without(table, given, upper) for table in (first, second))
    a = first[upper] - first[upper].mean()
    rng = numpy.random.default_rng(seed)

    def correlation(order):
        b = second[order][:, order][upper]
        b = b - b.mean()
        return (a @ b) / numpy.sqrt((a @ a) * (b @ b))

    r = correlation(numpy.arange(len(second)))
    beaten = sum(correlation(rng.permutation(len(second))) >= r - 1e-12 for _ in range(times))
    return {"r": _number(r), "p": (1 + beaten) / (1 + times), "shufflings": times}


def _without(table: numpy.ndarray, given: numpy.ndarray, upper: tuple) -> numpy.ndarray:
    """Returns what a straight line in `given` does not explain of a table."""
    slope, start = numpy.polyfit(given[upper], table[upper], 1)
    return table - start - slope * given


def silhouette(table: numpy.ndarray, labels: Sequence[str], times: int = 999, seed: int = 0) -> dict:
    """Says how much closer points lie to their own label than to the nearest other, and tests it by shuffling labels.

    Labels of fewer than three points are left out.

    Returns:
        `silhouette` (mean, -1 to 1), `p`, `shufflings`, `points` and `labels` (how many took part).
    """
    names, counts = numpy.unique(numpy.array(labels), return_counts=True)
    kept = numpy.isin(numpy.array(labels), names[counts >= 3])
    table, codes = table[numpy.ix_(kept, kept)], numpy.unique(numpy.array(labels)[kept], return_inverse=True)[1]
    sizes = numpy.bincount(codes)

    def mean_silhouette(codes):
        to_label = table @ numpy.eye(len(sizes))[codes]  # [points, labels]: summed distance
        points = numpy.arange(len(codes))
        own = to_label[points, codes] / (sizes[codes] - 1)
        others = to_label / sizes
        others[points, codes] = numpy.inf
        nearest = others.min(1)
        return float(((nearest - own) / numpy.maximum(nearest, own)).mean())

    rng = numpy.random.default_rng(seed)
    value = mean_silhouette(codes)
    beaten = sum(mean_silhouette(rng.permutation(codes)) >= value - 1e-12 for _ in range(times))
    about = {"points": int(kept.sum()), "labels": len(sizes)}
    return {"silhouette": _number(value), "p": (1 + beaten) / (1 + times), "shufflings": times, **about}


def tests_table(found: Mapping):
    """Returns the tests of one selection in families.json as a DataFrame of words: rows are tests, columns languages."""
    import pandas

    columns = {}
    for group, tests in found.items():
        if isinstance(tests, dict):
            cells = {
                name: f"{signed(x.get('r', x.get('silhouette')), 2)}, p = {x['p']:.3g}"
                for name, x in tests.items()
                if isinstance(x, dict)
            }
            columns[f"{group} ({tests['languages']})"] = cells
    return pandas.DataFrame(columns).fillna("")


def rank_correlation(x: Sequence[float], y: Sequence[float], times: int = 2000, seed: int = 0) -> dict:
    """Correlates ranks (Spearman), with a 95% interval over resampled languages and a permutation test (two-sided).

    Pairs with a missing value are left out.
    """
    pairs = numpy.array([(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None], dtype=float)
    rng = numpy.random.default_rng(seed)

    def correlation(a, b):
        ranks = [numpy.unique(v, return_inverse=True, return_counts=True)[1:] for v in (a, b)]
        mean_ranks = [(numpy.cumsum(counts) - (counts - 1) / 2)[place] for place, counts in ranks]
        a, b = (rank - rank.mean() for rank in mean_ranks)
        spread = numpy.sqrt((a @ a) * (b @ b))
        return (a @ b) / spread if spread else numpy.nan  # a resampling of one value alone has no correlation

    rho = correlation(*pairs.T)
    drawn = [correlation(*pairs[rng.integers(len(pairs), size=len(pairs))].T) for _ in range(times)]
    null = [abs(correlation(pairs[:, 0], rng.permutation(pairs[:, 1]))) for _ in range(times)]
    low, high = numpy.nanquantile(drawn, INTERVAL)
    p = (1 + sum(value >= abs(rho) - 1e-12 for value in null)) / (1 + times)
    return {"rho": _number(rho), "low": _number(low), "high": _number(high), "p": p, "languages": len(pairs)}
