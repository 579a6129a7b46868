from .calibrate import calibrate as calibrate
from .calibration import (
    Calibration as Calibration,
    apply_calibration as apply_calibration,
    read_calibration as read_calibration,
)
from .cameras import Cameras as Cameras, StatedCamera as StatedCamera, stated_for_all as stated_for_all
from .claims import ImageClaims as ImageClaims, read_claims as read_claims
from .dask_cluster import open_client as open_client, open_executor as open_executor
from .dask_slices import predict_on as predict_on
from .entries import ReadImage as ReadImage, predict_batch as predict_batch, read_image as read_image
from .job import BatchJob as BatchJob, DepthModel as DepthModel
from .outputs import (
    File as File,
    ImageResult as ImageResult,
    check_kinds as check_kinds,
    files_of as files_of,
    to_ascii as to_ascii,
    with_figures as with_figures,
)
from .prometheus import MetricsFile as MetricsFile
from .quota import Quota as Quota
from .robust_fit import Fit as Fit, fit_calibration as fit_calibration
from .stage import over_budget as over_budget, predict_all as predict_all
