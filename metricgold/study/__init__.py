"""Studies: one question, the runs that answer it, their rows, and the page that they make."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
