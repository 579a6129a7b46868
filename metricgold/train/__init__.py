"""Training of the U-Net and of the depth decoder, and what it will cost."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
