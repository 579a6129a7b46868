from .baselines import in_range as in_range
from .benchmark_stage import (
    benchmark as benchmark,
    chosen_protocols as chosen_protocols,
    data_digest as data_digest,
    score_frames as score_frames,
)
from .depth_ranges import range_edges_m as range_edges_m
from .headline import write_headline as write_headline
from .methods import (
    KINDS as KINDS,
    Estimate as Estimate,
    Kind as Kind,
    Method as Method,
    SeesImages as SeesImages,
)
from .ours import OurModel as OurModel, VaeFloor as VaeFloor
from .peers import open_peer as open_peer
from .predictions import rank_correlation as rank_correlation
from .protocols import (
    WITH_CAMERA as WITH_CAMERA,
    Protocol as Protocol,
    protocols_of as protocols_of,
)
from .read_figures import read_figures as read_figures
from .rows import Rows as Rows, read_rows_files as read_rows_files, write_rows_file as write_rows_file
from .stage import evaluate as evaluate
from .summary import (
    BenchmarkOutputs as BenchmarkOutputs,
    every_figure as every_figure,
    rebuild_report as rebuild_report,
)
from .uncertainty import held_out_calibration as held_out_calibration
from .vae_floor import (
    Floor as Floor,
    frames_in_range as frames_in_range,
    measure_floor as measure_floor,
    measure_vae_floor as measure_vae_floor,
)
from .validation import held_out_validation as held_out_validation
