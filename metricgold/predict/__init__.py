"""Batch jobs: images of a folder or bucket to depth files, with one receipt."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
