"""A study's part of the manual, made of its committed rows alone: what was asked, tables, a picture.

Equal rows give equal bytes. The part lies between two markers of the page, so that what people write about it stays.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.evaluate import rank_correlation
from metricgold.metrics import Interval, interval_over_seeds, seeds_needed
from metricgold.storage import fill_between, write_aside
from metricgold.study.definition import FOLDER, TWIN, Study, load_study
from metricgold.study.results import FIGURES, Results, Row

PAGE = Path("docs/studies.md")
IN_DOMAIN, BENCHMARKS = "in domain", "benchmarks"
Combination = tuple[str, ...]  # a level of each factor
MAX_LABELS = 24  # combinations that the picture names; of more it shows error by cost


def write_report(name: str, page: Path | None = None, folder: Path = FOLDER) -> list[Path]:
    """Put a study's part into a page, between <!-- study NAME --> and <!-- /study NAME -->, and its picture beside it.

    A page that is not there is begun. Returns what was written. Raises ValueError for a study that is not there, rows
    of other factors, and a page without the markers.
    """
    page, figures = page or PAGE, read_figures(name, folder)
    marks = f"<!-- study {name} -->\n<!-- /study {name} -->\n"
    if not page.exists():
        with write_aside(page) as aside:
            aside.write_text(f"# Studies\n\n{marks}")
    picture = page.parent / "pictures" / f"study-{name}.png"
    fill_between(page, f"study {name}", render(name, figures))
    return [page, *([draw(figures, picture)] if figures.rows else [])]


def render_study(name: str, folder: Path = FOLDER) -> str:
    """A study's part of the page, as text."""
    return render(name, read_figures(name, folder))


def read_figures(name: str, folder: Path) -> "Figures":
    """The figures of the runs that were measured."""
    study = load_study(name, folder)
    results = Results(name, study, folder / "results")
    return Figures(study, results.measured_rows(), results.runs())


class Figures:
    """A study's rows as arrays, [seeds, scenes]."""

    def __init__(self, study: Study, rows: Sequence[Row], runs: Sequence[Row]) -> None:
        self.study, self.rows, self.runs = study, rows, runs
        self.factors = list(study.every_factor)
        measures = study.measures
        self.benchmarks = {name.removesuffix(TWIN) for name in (*measures.benchmarks, *measures.if_there)}
        self._values: dict[tuple[Combination, str], dict[str, Row]] = defaultdict(dict)
        for row in rows:
            combination = tuple(row[factor] for factor in self.factors)
            self._values[combination, row["seed"]][f"{row['set']}/{row['scene']}"] = row

    @cached_property
    def combinations(self) -> list[Combination]:
        """Those that were measured, in the order of the study's levels."""
        measured = {combination for combination, _ in self._values}
        return [one for one in product(*self.study.every_factor.values()) if one in measured]

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Sets by what a table calls them together: in domain, benchmarks, and each set alone, benchmarks first."""
        twins = [one for one in self.sets if one.removesuffix(TWIN) in self.benchmarks]
        groups = {IN_DOMAIN: [one for one in self.sets if one not in twins], BENCHMARKS: twins}
        groups = {name: members for name, members in groups.items() if members}
        return groups | {one: [one] for one in (*twins, *self.sets)}

    @property
    def sets(self) -> list[str]:
        """Every set alone."""
        return sorted({row["set"] for row in self.rows})

    def rank_correlation(self, combination: Combination, group: str) -> float:
        """Spearman's, of stated error and AbsRel over scenes, the mean over seeds; NaN where one never differs."""
        (stated,), (error,) = (self.values([combination], group, figure) for figure in ("stated", "abs_rel"))
        return float(np.mean([rank_correlation(*of_seed) for of_seed in zip(stated, error, strict=True)]))

    @property
    def overall(self) -> list[str]:
        """The groups of more than one set."""
        return [name for name in (IN_DOMAIN, BENCHMARKS) if name in self.groups]

    def baseline(self, combination: Combination) -> Combination:
        """What a combination is compared with: the first level of every factor that the study is not `within`."""
        levels = self.study.every_factor
        return tuple(
            level if factor in self.study.within else levels[factor][0]
            for factor, level in zip(self.factors, combination, strict=True)
        )

    def values(self, combinations: Sequence[Combination], group: str, figure: str) -> list[np.ndarray]:
        """Of each combination [seeds, scenes], for the seeds and scenes that all of them have."""
        sets, seeds = self.groups[group], list(dict.fromkeys(seed for _, seed in self._values))
        seeds = [seed for seed in seeds if all((one, seed) in self._values for one in combinations)]
        of_runs = [[self._values[one, seed] for seed in seeds] for one in combinations]
        scenes = [{scene for scene, row in of_run.items() if row["set"] in sets} for runs in of_runs for of_run in runs]
        common = sorted(set.intersection(*scenes)) if scenes else []
        return [
            np.array([[float(row[scene][figure]) for scene in common] for row in runs]).reshape(len(seeds), len(common))
            for runs in of_runs
        ]

    def mean(self, combination: Combination, group: str, figure: str) -> Interval:
        """With its interval over seeds and scenes."""
        return interval_over_seeds(self.values([combination], group, figure)[0])

    def difference(self, combination: Combination, group: str) -> np.ndarray:
        """AbsRel minus that of the baseline, paired by seed and scene, [seeds, scenes]; empty without the baseline."""
        own, other = self.values([combination, self.baseline(combination)], group, "abs_rel")
        difference: np.ndarray = own - other
        return difference

    def cost(self, combination: Combination, name: str) -> float:
        """A cost of its runs, the mean over seeds."""
        levels = dict(zip(self.factors, combination, strict=True))
        runs = [run for run in self.runs if levels.items() <= run.items()]
        return float(np.mean([float(run[name]) for run in runs]))

    def front(self, group: str) -> list[Combination]:
        """Combinations than which no other has both fewer passes and less error, the cheapest first."""
        points = {one: (self.cost(one, "passes"), self.mean(one, group, "abs_rel").mean) for one in self.combinations}
        ordered = sorted(points, key=lambda one: points[one])
        best: list[Combination] = []
        for one in ordered:
            if not best or points[one][1] < points[best[-1]][1]:
                best.append(one)
        return best


# --- text -----------------------------------------------------------------------------------------------------------


def render(name: str, figures: Figures) -> str:
    """What stands between the markers."""
    question = f"**Question.** {figures.study.question}"
    if not figures.rows:
        return f"{question}\n\nNot measured yet: `metricgold study {name}`."
    parts = [question, verdict(figures), means_table(figures), differences_table(figures)]
    parts += [uncertainty_table(figures), costs_table(figures)]
    parts += [f"![AbsRel of study {name}, with intervals](pictures/study-{name}.png)", basis(figures)]
    return "\n\n".join(filter(None, parts))


def label(figures: Figures, combination: Combination) -> str:
    """A combination by its levels, with the factors where there are several."""
    if len(combination) == 1:
        return combination[0]
    return ", ".join(f"{factor} {level}" for factor, level in zip(figures.factors, combination, strict=True))


def verdict(figures: Figures) -> str:
    """For each group, which combinations differ from what they are compared with, and which do not beyond doubt."""
    lines = []
    for group in figures.overall:
        found: dict[str, list[str]] = {"lower AbsRel": [], "higher AbsRel": [], "undecided": []}
        for one in compared(figures):
            mean, low, high = interval_over_seeds(figures.difference(one, group))
            word = "lower AbsRel" if high < 0 else "higher AbsRel" if low > 0 else "undecided"
            found[word].append(f"{label(figures, one)} ({mean:+.3f})")
        texts = [f"{word}: {shortened(ones)}" for word, ones in found.items() if ones]
        lines += [f"- **{group}**: {'; '.join(texts)}."] if texts else []
        if figures.study.inference:
            front = [f"{label(figures, one)} ({figures.cost(one, 'passes'):g} passes)" for one in figures.front(group)]
            lines.append(f"- Pareto front of passes and AbsRel, {group}: {'; '.join(front)}.")
    return "\n".join(lines)


def shortened(names: Sequence[str]) -> str:
    """A list for a sentence; of long ones their beginning and number."""
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:6])} and {len(names) - 6} more"


def compared(figures: Figures) -> list[Combination]:
    """The combinations that have something else to be compared with."""
    there = set(figures.combinations)
    return [one for one in figures.combinations if figures.baseline(one) != one and figures.baseline(one) in there]


def means_table(figures: Figures) -> str:
    """AbsRel with its interval, delta1 and the VAE floor of every combination."""
    heads = [*figures.factors]
    heads += [f"{group}: {what}" for group in figures.overall for what in ("AbsRel", "δ1", "VAE floor")]
    lines = [*heading([*heads, "seeds"])]
    for one in figures.combinations:
        cells = [*one]
        for group in figures.overall:
            abs_rel, delta1, floor = (figures.mean(one, group, figure) for figure in FIGURES)
            cells += [with_ends(abs_rel), f"{delta1.mean:.3f}", f"{floor.mean:.3f}"]
        lines.append(table_row([*cells, str(len(figures.values([one], figures.overall[0], "abs_rel")[0]))]))
    return "\n".join(lines)


def differences_table(figures: Figures) -> str:
    """AbsRel minus that of what it is compared with, and the seeds that an undecided one would take."""
    wholes = [figures.groups[name] for name in figures.overall]
    groups = [name for name, sets in figures.groups.items() if name in figures.overall or sets not in wholes]
    undecided = [f"seeds to decide, {group}" for group in figures.overall]
    lines = [*heading(["AbsRel, difference of", "to", *groups, *undecided])]
    for one in compared(figures):
        cells = [with_ends(interval_over_seeds(figures.difference(one, group)), sign="+") for group in groups]
        cells += [seeds_text(figures.difference(one, group)) for group in figures.overall]
        lines.append(table_row([label(figures, one), label(figures, figures.baseline(one)), *cells]))
    return "\n".join(lines) if len(lines) > 2 else ""


def uncertainty_table(figures: Figures) -> str:
    """Of every set: the error, the error that the model states, and whether one tells the other; empty without it."""
    if not figures.study.measures.uncertainty:
        return ""
    heads = ["set", "AbsRel", "stated standard error", "pixels within it", "rank correlation of both, scenes"]
    lines = [*heading([*figures.factors, *heads])]
    for one in figures.combinations:
        for group in (*figures.overall, *figures.sets):
            means = [figures.mean(one, group, figure) for figure in ("abs_rel", "stated", "within")]
            cells = [*map(with_ends, means), f"{figures.rank_correlation(one, group):.2f}"]
            lines.append(table_row([*one, group, *cells]))
    legend = (
        "The stated standard error is that of ln depth, 0.1 is about 10 % of the depth. Of a normal distribution 68 % "
        "of pixels lie within it. The rank correlation is Spearman's, of stated error and AbsRel over scenes, the mean "
        "over seeds: 1 where the model states more wherever it errs more."
    )
    return "\n".join([*lines, "", legend])


def seeds_text(difference: np.ndarray) -> str:
    """As the table shows them."""
    _, low, high = interval_over_seeds(difference)
    if low > 0 or high < 0:
        return "decided"
    if min(difference.shape) < 2:
        return "not known"
    number = seeds_needed(difference)
    return "more than 100" if number is None else str(number)


def costs_table(figures: Figures) -> str:
    """What each combination cost, the mean over seeds."""
    columns = {
        "passes": "U-Net passes an image",
        "image_gflop": "GFLOP an image",
        "image_s": "s an image",
        "train_passes": "passes in training",
        "train_tflop": "TFLOP in training",
        "train_s": "s of training",
        "peak_gb": "peak GB",
    }
    lines = [*heading([*figures.factors, *columns.values()])]
    lines += [table_row([*one, *(f"{figures.cost(one, key):.4g}" for key in columns)]) for one in figures.combinations]
    return "\n".join(lines)


def basis(figures: Figures) -> str:
    """What the figures rest on."""
    runs = figures.runs
    seeds = sorted({int(run["seed"]) for run in runs})
    commits, machines = (sorted({run[key] for run in runs}) for key in ("commit", "machine"))
    scenes = {
        group: len({(row["set"], row["scene"]) for row in figures.rows if row["set"] in figures.groups[group]})
        for group in figures.overall
    }
    counted = ", ".join(f"{number} scenes {group}" for group, number in scenes.items())
    num_asked = len(figures.study.seeds) * math.prod(map(len, figures.study.every_factor.values()))
    num_runs = f"{len(runs)} of {num_asked}" if len(runs) < num_asked else str(len(runs))
    return (
        f"{num_runs} runs, seeds {', '.join(map(str, seeds))}; {counted}; commits {', '.join(commits)}; "
        f"{', '.join(machines)}. In brackets the 95 % interval for other scenes and other seeds of training; "
        "differences are paired by both. It does not cover another backbone, other data or another budget."
    )


def heading(names: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [table_row(names), "|" + "---|" * len(names)]


def table_row(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def with_ends(interval: Interval, sign: str = "") -> str:
    """A mean and its interval, where there is one."""
    mean, low, high = (f"{value:{sign}.3f}" for value in interval)
    return mean if np.isnan(interval.low) else f"{mean} ({low} to {high})"


# --- picture --------------------------------------------------------------------------------------------------------


def draw(figures: Figures, path: Path) -> Path:
    """AbsRel with intervals by combination; where inference varies by passes of the U-Net, with the Pareto front."""
    from matplotlib.figure import Figure

    by_cost = bool(figures.study.inference) or len(figures.combinations) > MAX_LABELS
    height = 3.4 if by_cost else 1.2 + 0.24 * len(figures.combinations)
    picture = Figure(figsize=(8, height), dpi=80, layout="constrained")
    for ax, group in zip(picture.subplots(1, len(figures.overall), squeeze=False)[0], figures.overall, strict=True):
        (draw_costs if by_cost else draw_dots)(ax, figures, group)
        ax.set_title(group, fontsize=9)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    if by_cost:  # beside both, where it hides no point
        title = ", ".join(figures.study.factors) or None
        style = {"frameon": False, "fontsize": 8, "title": title, "title_fontsize": 8}
        picture.legend(*ax.get_legend_handles_labels(), loc="outside right upper", **style)
    with write_aside(path) as aside:
        picture.savefig(aside, format="png", metadata={"Software": None})
    return path


def draw_dots(ax: Any, figures: Figures, group: str) -> None:
    """A line for each combination: its mean and interval."""
    means = np.array([figures.mean(one, group, "abs_rel") for one in figures.combinations])
    places = np.arange(len(means))
    ends = np.nan_to_num(np.abs(means[:, 1:] - means[:, :1]).T)
    ax.errorbar(means[:, 0], places, xerr=ends, fmt="o", ms=4, lw=1.2, capsize=2)
    first = group == figures.overall[0]
    labels = [label(figures, one) for one in figures.combinations] if first else [""] * len(places)
    ax.set_yticks(places, labels, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("AbsRel", fontsize=8)
    ax.tick_params(labelsize=8)


def draw_costs(ax: Any, figures: Figures, group: str) -> None:
    """A point for each combination, in a colour for each way to train; the front of all names its ways to predict."""
    points = {
        one: (figures.cost(one, "passes"), figures.mean(one, group, "abs_rel").mean) for one in figures.combinations
    }
    num_trained = len(figures.study.factors)
    for trained in dict.fromkeys(one[:num_trained] for one in points):
        own = [point for one, point in points.items() if one[:num_trained] == trained]
        ax.plot(*zip(*own, strict=True), "o", ms=4, alpha=0.7, label=", ".join(trained))
    front = {one: points[one] for one in figures.front(group)}
    ax.plot(*zip(*front.values(), strict=True), "-", color="black", lw=1, alpha=0.6, label="Pareto front")
    for one, point in front.items():
        ax.annotate(", ".join(one[num_trained:]), point, (0, -9), textcoords="offset points", fontsize=7, ha="center")
    ax.set_xscale("log")
    ax.set_xlabel("U-Net passes an image", fontsize=8)
    ax.set_ylabel("AbsRel", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.margins(0.12, 0.1)
