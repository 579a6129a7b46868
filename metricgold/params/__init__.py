"""params.yaml as typed sections, the profiles, and the project's folders."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
