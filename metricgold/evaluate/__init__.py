"""How good: figures on held-out frames, baselines that never look, the floor of the VAE."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
