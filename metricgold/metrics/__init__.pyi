from .figures import (
    HIGHER_IS_BETTER as HIGHER_IS_BETTER,
    LOWER_IS_BETTER as LOWER_IS_BETTER,
    METRICS as METRICS,
    depth_metrics as depth_metrics,
    mean_metrics as mean_metrics,
)
