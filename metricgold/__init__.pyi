from .datasets import Frame as Frame, open_dataset as open_dataset
from .images import (
    DepthFile as DepthFile,
    points_from_depth as points_from_depth,
    read_depth as read_depth,
    read_rgb as read_rgb,
    write_glb as write_glb,
    write_ply as write_ply,
)
from .log_depth import LogDepth as LogDepth
from .metrics import depth_metrics as depth_metrics
from .model import MetricGoldPipeline as MetricGoldPipeline, Prediction as Prediction
from .shards import LatentCache as LatentCache

__version__: str
