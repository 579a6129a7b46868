from .dask_cluster import open_client as open_client, open_executor as open_executor
from .dask_slices import predict_on as predict_on
from .job import DepthModel as DepthModel
from .stage import over_budget as over_budget, predict_all as predict_all
