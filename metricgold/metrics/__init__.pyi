from .alignment import ALIGNMENTS as ALIGNMENTS, Alignment as Alignment, align as align, alignments_of as alignments_of
from .calibration import (
    CALIBRATION as CALIBRATION,
    Sparsification as Sparsification,
    sparsification as sparsification,
)
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
from .pairs import KINDS as KINDS, Kind as Kind
