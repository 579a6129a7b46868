from .lineage import dvc_outputs as dvc_outputs, git_commit as git_commit
from .live import track as track
from .pyfunc import _load_pyfunc as _load_pyfunc, fetch_model as fetch_model
from .versions import promote as promote, register as register, rollback as rollback
