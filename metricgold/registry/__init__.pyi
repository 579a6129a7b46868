from .versions import (
    _load_pyfunc as _load_pyfunc,
    fetch_model as fetch_model,
    promote as promote,
    register as register,
    rollback as rollback,
    track as track,
)
