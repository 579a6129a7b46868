"""Files complete or absent, digests, locks; buckets: a folder or an S3 prefix under one name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
