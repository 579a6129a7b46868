"""Depth over HTTP: a server that predicts photographs in batches, and its page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
