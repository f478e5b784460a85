"""Statistics of the atlas: how stable its neuron sets are, and whether their overlap follows families or scripts.

Counts are stored by shard of text (`ShardedProfile`), so intervals come from resampling the text. Clustering, scaling,
silhouettes, rank correlation, permutation tests and the bootstrap over languages are SciPy's and scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy
import pandas
import torch
from scipy import stats
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.manifold import ClassicalMDS
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import KernelCenterer

from ssetools.evaluation.intervals import INTERVAL, signed
from ssetools.languages import get_language
from ssetools.neurons.selection import select_neurons
from ssetools.neurons.sets import NeuronSets
from study.atlas.shards import ShardedProfile

_MIN_GROUP = 3  # languages with a common label; smaller groups are left out of a silhouette


def jaccard_by_language(first: NeuronSets, second: NeuronSets, languages: Sequence[str]) -> numpy.ndarray:
    """Returns the Jaccard index of each language's two sets, [languages]; NaN where both are empty."""
    masks = [(first.mask(lang), second.mask(lang)) for lang in languages]
    shared = numpy.array([int((a & b).sum()) for a, b in masks], dtype=float)
    union = numpy.array([int((a | b).sum()) for a, b in masks], dtype=float)
    return numpy.divide(shared, union, out=numpy.full(len(languages), numpy.nan), where=union > 0)


def overlap_between_selections(
    counts: ShardedProfile, groups: Mapping[str, Sequence[str]], top_rate: float, resamples: int = 30, seed: int = 0
) -> dict:
    """Compares each language's neuron set between selections that contrast few and many languages.

    Args:
        counts: Counts of all languages.
        groups: Languages that are profiled together, by name of the group, the smallest group first; each group contains
            the one before.
        top_rate: Share of all neurons selected.
        resamples: Bootstrap resamples of the text.
        seed: Seed of the resampling.

    Returns:
        By pair of groups ("13/50") and by language: `jaccard`, and `low` and `high` (95% over resampled text, the same
        text in both selections); under "mean", the mean over languages.
    """
    names = list(groups)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    generator = torch.Generator().manual_seed(seed)

    def compare(shards: torch.Tensor) -> dict[tuple[str, str], numpy.ndarray]:
        sets = {}
        for name, languages in groups.items():
            rows = [counts.languages.index(lang) for lang in languages]
            sets[name] = select_neurons(counts.profile(shards[rows], languages), top_rate)
        return {(a, b): jaccard_by_language(sets[a], sets[b], groups[a]) for a, b in pairs}

    shape = (len(counts.languages), counts.num_shards)
    measured = compare(torch.arange(counts.num_shards).expand(shape))
    resampled = [compare(torch.randint(counts.num_shards, shape, generator=generator)) for _ in range(resamples)]
    return {
        f"{a}/{b}": _intervals_by_language(
            groups[a], measured[a, b], numpy.stack([sample[a, b] for sample in resampled])
        )
        for a, b in pairs
    }


def split_half_stability(counts: ShardedProfile, top_rate: float, splits: int = 10, seed: int = 0) -> dict:
    """Selects neurons from each of two parts of the text that share no token, for parts of growing length.

    Returns:
        By tokens in each part and by language: mean `jaccard` over the splits, and `low` and `high`, the 95% range over
        them; under "mean", the mean over languages.
    """
    stability = {}
    shards = 1
    while 2 * shards <= counts.num_shards:
        table = numpy.stack(
            [
                jaccard_by_language(*(select_neurons(half, top_rate) for half in halves), counts.languages)
                for halves in counts.halves(splits, shards, seed=seed)
            ]
        )
        rows = _intervals_by_language(counts.languages, _mean_or_nan(table), table)
        # The mean over languages of each split, not the mean of the languages' means: in the latter a language that has
        # neurons in one split only would count as much as one that has neurons in every split.
        by_split = _mean_or_nan(table.T)
        stability[str(shards * counts.shard_tokens)] = rows | {"mean": _interval(numpy.nanmean(by_split), by_split)}
        shards *= 2
    return stability


def agreement_across_genres(
    first: ShardedProfile, second: ShardedProfile, top_rate: float, splits: int = 10, seed: int = 0
) -> dict:
    """Compares neuron sets from text of two genres with the ceiling, the agreement of two halves of one genre.

    Every part has half of the shards, so that only the genre differs.

    Returns:
        By language, and under "mean": `within_first`, `within_second` and `across`, mean Jaccard indices over the splits.
        Under "mean" also `share`, the mean across genres divided by the mean ceiling (the geometric mean of the two
        within a genre), with `low` and `high`, its 95% interval over resampled languages.
    """
    languages = [lang for lang in first.languages if lang in second.languages]
    jaccard: dict[str, list] = {"within_first": [], "within_second": [], "across": []}
    half = first.num_shards // 2
    pairs = zip(first.halves(splits, half, languages, seed), second.halves(splits, half, languages, seed), strict=True)
    for halves_of_first, halves_of_second in pairs:
        a, a2, b, b2 = (select_neurons(part, top_rate) for part in (*halves_of_first, *halves_of_second))
        for name, x, y in (("within_first", a, a2), ("within_second", b, b2), ("across", a, b)):
            jaccard[name].append(jaccard_by_language(x, y, languages))
    means = {name: _mean_or_nan(numpy.stack(rows)) for name, rows in jaccard.items()}
    table = {lang: {name: _rounded(row[i]) for name, row in means.items()} for i, lang in enumerate(languages)}
    table["mean"] = {name: _rounded(numpy.nanmean(row)) for name, row in means.items()} | share_of_ceiling(
        **means, seed=seed
    )
    return table


def share_of_ceiling(
    within_first: Sequence[float], within_second: Sequence[float], across: Sequence[float], seed: int = 0
) -> dict:
    """Divides the mean agreement across genres by the mean ceiling, with a 95% bootstrap interval over languages."""
    table = numpy.array([across, numpy.sqrt(numpy.multiply(within_first, within_second))], dtype=float)
    table = table[:, numpy.isfinite(table).all(0)]
    interval = stats.bootstrap(
        tuple(table),
        lambda x, y, axis: x.mean(axis) / y.mean(axis),
        n_resamples=2000,
        paired=True,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return {
        "share": _rounded(table[0].mean() / table[1].mean()),
        "low": _rounded(interval.low),
        "high": _rounded(interval.high),
    }


def _intervals_by_language(languages: Sequence[str], values: numpy.ndarray, samples: numpy.ndarray) -> dict:
    """Gives each language's value the range of its samples, [samples, languages]; under "mean" those of the mean."""
    rows = {lang: _interval(value, sample) for lang, value, sample in zip(languages, values, samples.T, strict=True)}
    return rows | {"mean": _interval(numpy.nanmean(values), numpy.nanmean(samples, 1))}


def _interval(value: float, samples: numpy.ndarray) -> dict:
    samples = samples[numpy.isfinite(samples)]
    low, high = numpy.quantile(samples, INTERVAL) if len(samples) else (None, None)
    return {"jaccard": _rounded(value), "low": _rounded(low), "high": _rounded(high)}


def _mean_or_nan(table: numpy.ndarray) -> numpy.ndarray:
    """Returns the mean of each column without its NaNs; NaN, without a warning, for a column of NaNs."""
    known = numpy.isfinite(table)
    total = numpy.where(known, table, 0).sum(0)
    return numpy.divide(total, known.sum(0), out=numpy.full(table.shape[1], numpy.nan), where=known.any(0))


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not numpy.isfinite(value) else round(float(value), digits)


# --- distances, clustering and scaling ---


def jaccard_distances(neurons: NeuronSets) -> numpy.ndarray:
    """Returns 1 - Jaccard of every two languages, [languages, languages]; 1 where both sets are empty."""
    table = 1 - numpy.nan_to_num(neurons.overlap().to_numpy(dtype=float), nan=0.0)
    numpy.fill_diagonal(table, 0.0)
    return table


def family_distances(languages: Sequence[str]) -> numpy.ndarray:
    """Returns 1 minus the share of their lineages in Glottolog's tree that two languages have in common, [n, n]."""
    lineages = [get_language(code).lineage for code in languages]
    table = numpy.zeros((len(lineages), len(lineages)))
    for i, a in enumerate(lineages):
        for j, b in enumerate(lineages[:i]):
            shared = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            table[i, j] = table[j, i] = 1 - 2 * shared / (len(a) + len(b))
    return table


def label_distances(labels: Sequence[str]) -> numpy.ndarray:
    """Returns 0 where two labels are the same and 1 where they differ, [n, n]."""
    names = numpy.array(labels)
    return (names[:, None] != names[None, :]).astype(float)


def average_linkage(distances: numpy.ndarray) -> numpy.ndarray:
    """Clusters by average linkage (UPGMA); returns the linkage matrix of `scipy.cluster.hierarchy`, [n - 1, 4]."""
    return hierarchy.linkage(squareform(distances), "average", optimal_ordering=True)


def cophenetic_distances(linkage: numpy.ndarray) -> numpy.ndarray:
    """Returns the height at which every two points first join one cluster, [n, n]."""
    return squareform(hierarchy.cophenet(linkage))


def classical_scaling(distances: numpy.ndarray, dimensions: int = 2) -> tuple[numpy.ndarray, float]:
    """Places points so that their distances approximate the table (classical scaling, Torgerson 1952).

    Returns:
        Coordinates [n, dimensions], and the sum of the eigenvalues of these dimensions as a share of all positive
        eigenvalues.
    """
    scaling = ClassicalMDS(dimensions, metric="precomputed").fit(distances)
    centred = KernelCenterer().fit_transform(-0.5 * distances**2)
    share = scaling.eigenvalues_.sum() / numpy.linalg.eigvalsh(centred).clip(0).sum()
    return scaling.embedding_, float(share)


# --- tests ---


def mantel_test(
    first: numpy.ndarray,
    second: numpy.ndarray,
    control: numpy.ndarray | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> dict:
    """Correlates two distance matrices (Pearson), and tests whether the correlation is greater than chance (Mantel 1967).

    With a control matrix it is the partial Mantel test (Smouse, Long and Sokal 1986): the correlation
    r = corr(first - a - b * control, second - c - d * control) of the residuals of two linear regressions, in which the
    residuals of `second` are permuted.

    Args:
        first: Distances, [n, n].
        second: Distances between the same points; the points of this matrix are permuted.
        control: Distances whose linear effect is removed from both matrices.
        permutations: Random permutations of the points.
        seed: Seed of the permutations.

    Returns:
        `r`, the one-sided `p`, and `permutations`.
    """
    upper = numpy.triu_indices(len(first), 1)
    if control is not None:
        first, second = (_residuals(table, control, upper) for table in (first, second))
    fixed = stats.zscore(first[upper])
    permuted = (second - second[upper].mean()) / second[upper].std()

    def correlation(order: numpy.ndarray) -> float:
        return float(fixed @ permuted[numpy.ix_(order, order)][upper] / len(fixed))

    return _test(correlation, numpy.arange(len(second)), permutations, seed, "r", "greater")


def _residuals(table: numpy.ndarray, control: numpy.ndarray, upper: tuple) -> numpy.ndarray:
    line = stats.linregress(control[upper], table[upper])
    return table - line.intercept - line.slope * control


def silhouette_test(distances: numpy.ndarray, labels: Sequence[str], permutations: int = 999, seed: int = 0) -> dict:
    """Measures how much closer points are to their own label than to the nearest other label (Rousseeuw 1987).

    Labels of fewer than three points are left out. The test permutes labels.

    Returns:
        `silhouette` (mean over points, -1 to 1), the one-sided `p`, `permutations`, and `points` and `labels`, the numbers
        of points and of labels that are included.
    """
    names, codes, sizes = numpy.unique(numpy.array(labels), return_inverse=True, return_counts=True)
    included = sizes[codes] >= _MIN_GROUP
    distances, codes = distances[numpy.ix_(included, included)], codes[included]

    def mean_silhouette(codes: numpy.ndarray) -> float:
        return silhouette_score(distances, codes, metric="precomputed")

    result = _test(mean_silhouette, codes, permutations, seed, "silhouette", "greater")
    return result | {"points": len(codes), "labels": int((sizes >= _MIN_GROUP).sum())}


def spearman_test(x: Sequence[float | None], y: Sequence[float | None], resamples: int = 2000, seed: int = 0) -> dict:
    """Correlates ranks (Spearman), with a 95% bootstrap interval over languages and a two-sided permutation test.

    Pairs with a missing value are left out.

    Returns:
        `rho`, `low`, `high`, `p`, `permutations`, and `languages`, the number of pairs.
    """
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    x, y = numpy.array(pairs, dtype=float).T

    def correlation(x: numpy.ndarray, y: numpy.ndarray) -> float:
        return stats.spearmanr(x, y).statistic

    interval = stats.bootstrap(
        (x, y), correlation, n_resamples=resamples, paired=True, vectorized=False, method="percentile", rng=seed
    ).confidence_interval
    result = _test(lambda permuted: correlation(permuted, y), x, resamples, seed, "rho", "two-sided")
    return result | {"low": _rounded(interval.low), "high": _rounded(interval.high), "languages": len(pairs)}


def _test(
    statistic: Callable[[numpy.ndarray], float],
    values: numpy.ndarray,
    permutations: int,
    seed: int,
    name: str,
    alternative: str,
) -> dict:
    """Tests a statistic by permuting the values; the observed order counts as one permutation (Phipson and Smyth 2010)."""
    result = stats.permutation_test(
        (values,),
        statistic,
        permutation_type="pairings",
        vectorized=False,
        n_resamples=permutations,
        alternative=alternative,
        rng=seed,
    )
    return {name: _rounded(result.statistic), "p": float(result.pvalue), "permutations": permutations}


def tests_table(tests: Mapping[str, Mapping | int]) -> pandas.DataFrame:
    """Formats the tests of one selection in families.json: a row for each test, a column for each group of languages."""
    columns = {}
    for group, results in tests.items():
        if isinstance(results, Mapping):
            columns[f"{group} ({results['languages']})"] = {
                name: f"{signed(x.get('r', x.get('silhouette')), 2)}, p = {x['p']:.3g}"
                for name, x in results.items()
                if isinstance(x, Mapping)
            }
    return pandas.DataFrame(columns).fillna("")
