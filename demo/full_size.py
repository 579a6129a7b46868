"""What every study costs at full size, counted before anything starts: runs, hours and disk on two cards.

python -m demo.full_size   refreshes the table of docs/studies.md; about a minute
"""

from pathlib import Path

from metricgold.params import Folders, load_params
from metricgold.storage import fill_between
from metricgold.study import plan_study, study_names
from metricgold.train import GPUS
from metricgold.train.cost import activation_bytes, flops_per_sample
from metricgold.train.plan import SD2_UNET

PAGE = Path("docs/studies.md")
CARDS = ("rtx3090", "h100")  # each has a profile of its name


def rows_of(names: list[str], root: Path = Path()) -> list[dict[str, float | str]]:
    """Of each study its runs, trainings and GB of disk, and the hours of each card, by the profile of its name."""
    params = {card: load_params(root / f"profiles/{card}.yaml") for card in CARDS}
    rows: list[dict[str, float | str]] = []
    for name in names:
        plans = {card: plan_study(name, params[card], card=card, folders=Folders(root)) for card in CARDS}
        first = plans[CARDS[0]]
        row = {"study": name} | {key: first[key] for key in ("runs", "trainings", "disk_gb")}
        rows.append(row | {card: plan["hours"] for card, plan in plans.items()})
    return rows


def table(rows: list[dict[str, float | str]]) -> str:
    """One line for each study, and one for all of them; what they share on disk is not added up."""
    heads = ["study", "runs", "trainings", "disk, GB", *(f"{GPUS[card].title}, h" for card in CARDS)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [number(row[key]) for key in ("runs", "trainings", "disk_gb", *CARDS)]
        lines.append(f"| `{row['study']}` | {' | '.join(cells)} |")
    sums = {key: number(sum(float(row[key]) for row in rows)) for key in ("runs", "trainings", *CARDS)}
    cells = [sums["runs"], sums["trainings"], "", *(sums[card] for card in CARDS)]
    return "\n".join([*lines, f"| all | {' | '.join(cells)} |"])


def number(value: float | str) -> str:
    """Three digits, and no power of ten."""
    return f"{float(f'{float(value):.3g}'):,g}"


def in_pixels() -> str:
    """Why Stable Diffusion's own U-Net is not asked to learn from pixels."""
    texts = []
    for word, channels, size in (("in latents", 4, (60, 80)), ("in pixels", 3, (480, 640))):
        unet, shape = SD2_UNET | {"in_channels": 2 * channels, "out_channels": channels}, (channels, *size)
        flops = flops_per_sample(unet, shape, False)
        size_bytes = activation_bytes(unet, shape, half=True, checkpointing=False)
        texts.append(f"{word} {number(flops / 1e12)} TFLOP and {number(size_bytes / 1e9)} GB of activations")
    return f"A training sample of 480 x 640 takes Stable Diffusion's U-Net {', '.join(texts)}."


def main() -> None:
    """Write the table into the page."""
    fill_between(PAGE, "full size", f"{table(rows_of(study_names()))}\n\n{in_pixels()}")


if __name__ == "__main__":
    main()
