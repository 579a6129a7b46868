from .alignment import ALIGNMENTS as ALIGNMENTS, Alignment as Alignment, align as align, alignments_of as alignments_of
from .boundary import boundary_f1 as boundary_f1, boundary_recall as boundary_recall
from .calibration import (
    CALIBRATION as CALIBRATION,
    COVERAGES as COVERAGES,
    Sparsification as Sparsification,
    sparsification as sparsification,
    uncertainty_figures as uncertainty_figures,
)
from .edges import EdgeDistances as EdgeDistances, edge_distances as edge_distances
from .figures import (
    FIGURE_KEYS as FIGURE_KEYS,
    FIGURES as FIGURES,
    HIGHER_IS_BETTER as HIGHER_IS_BETTER,
    LOWER_IS_BETTER as LOWER_IS_BETTER,
    METRICS as METRICS,
    depth_metrics as depth_metrics,
    image_figures as image_figures,
    mean_metrics as mean_metrics,
)
from .intervals import (
    Interval as Interval,
    interval_by_scene as interval_by_scene,
    mean_by_scene as mean_by_scene,
    mean_interval as mean_interval,
    paired_interval as paired_interval,
    scene_weights as scene_weights,
)
from .pairs import KINDS as KINDS, Kind as Kind
from .planarity import Planarity as Planarity, planarity as planarity
from .ranges import range_figures as range_figures, range_sums as range_sums
from .scale import ScaleRatio as ScaleRatio, focal_trend as focal_trend, scale_ratio as scale_ratio
from .seeds import interval_over_seeds as interval_over_seeds, seeds_needed as seeds_needed
