"""What a batch job over very many images costs, counted from stated assumptions.

python -m demo.scale   refreshes the table of docs/scale.md
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from metricgold.storage import fill_between

PAGE = Path("docs/scale.md")
IMAGES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


@dataclass(frozen=True)
class Assumptions:
    """Of one image, one store and one machine; prices in dollars are those of a large cloud's price list."""

    input_bytes: int = 500_000
    files: int = 4  # outputs of an image: log-png, uncertainty, preview, json
    row_bytes: int = 1_300  # of its row in the receipt
    waiting_bytes: int = 2_000  # of its row while the job runs, in TMPDIR
    kept_us: float = 5.0  # CPU time of its row when a rerun keeps it, without that of listing
    listed_us: float = 20.0  # CPU time of one listed object on S3; 5 in a folder
    model_s: float = 0.5  # of one GPU
    page_keys: int = 1_000  # of one request to list
    page_s: float = 0.2
    listing_threads: int = 8  # where keys have folders of 20 objects and more; else 1
    usd_per_million_writes: float = 5.0  # PUT and LIST
    usd_per_million_reads: float = 0.4
    usd_per_tb_out: float = 90.0  # where the GPUs are not in the store's region
    usd_per_gpu_hour: float = 2.0


@dataclass(frozen=True)
class Costs:
    """Of one job over all images, and of the next run, which keeps them all."""

    listing_requests: int
    reads: int
    writes: int
    requests_usd: float
    gpu_hours: float
    gpu_usd: float
    egress_tb: float
    egress_usd: float
    receipt_gb: float
    waiting_gb: float
    rerun_listing_h: float
    rerun_listing_cpu_h: float
    rerun_cpu_h: float


def costs_of(images: int, given: Assumptions) -> Costs:
    """What this number of images costs in one job."""
    # Inputs are listed once; outputs only where a receipt of before names any.
    listing = ceil(images / given.page_keys)
    listing_again = listing + ceil(images * given.files / given.page_keys)
    writes = images * given.files
    gpu_hours = images * given.model_s / 3600
    egress_tb = images * given.input_bytes / 1e12
    usd_of_writes = (listing + writes) / 1e6 * given.usd_per_million_writes
    return Costs(
        listing_requests=listing,
        reads=images,
        writes=writes,
        requests_usd=usd_of_writes + images / 1e6 * given.usd_per_million_reads,
        gpu_hours=gpu_hours,
        gpu_usd=gpu_hours * given.usd_per_gpu_hour,
        egress_tb=egress_tb,
        egress_usd=egress_tb * given.usd_per_tb_out,
        receipt_gb=images * given.row_bytes / 1e9,
        waiting_gb=images * given.waiting_bytes / 1e9,
        rerun_listing_h=listing_again * given.page_s / given.listing_threads / 3600,
        rerun_listing_cpu_h=images * (1 + given.files) * given.listed_us / 1e6 / 3600,
        rerun_cpu_h=images * given.kept_us / 1e6 / 3600,
    )


def table(given: Assumptions) -> str:
    """One line for each number of images."""
    lines = [
        "| images | requests: list, read, write | of them, $ | GPU hours | $ | egress, TB | $ | receipt, GB |"
        " `TMPDIR`, GB | a rerun: listing, h | CPU of it, h | CPU of rows, h |",
        "|" + "---|" * 12,
    ]
    for images in IMAGES:
        costs = costs_of(images, given)
        requests = f"{costs.listing_requests:,}, {costs.reads:,}, {costs.writes:,}"
        lines.append(
            f"| {images:,} | {requests} | {costs.requests_usd:,.0f} | {costs.gpu_hours:,.0f} | {costs.gpu_usd:,.0f} |"
            f" {costs.egress_tb:,.1f} | {costs.egress_usd:,.0f} | {costs.receipt_gb:,.1f} | {costs.waiting_gb:,.0f} |"
            f" {costs.rerun_listing_h:,.1f} | {costs.rerun_listing_cpu_h:,.2f} | {costs.rerun_cpu_h:,.3f} |"
        )
    return "\n".join(lines)


def assumptions(given: Assumptions) -> str:
    """Each assumption with its value."""
    return "\n".join(["| assumption | value |", "|---|---|", *(f"| `{k}` | {v:,g} |" for k, v in vars(given).items())])


def main() -> None:
    """Write both tables into the page."""
    given = Assumptions()
    fill_between(PAGE, "scale", table(given))
    fill_between(PAGE, "assumptions", assumptions(given))


if __name__ == "__main__":
    main()
