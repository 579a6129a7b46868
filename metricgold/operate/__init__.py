"""What runs beside the commands: Prefect's server and workers, MLflow's server, and whether all they need is there.

The programs are started as child processes; none of their packages is imported.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
