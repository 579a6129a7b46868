"""What exists upstream, how it is read, and the one form that every frame has."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
