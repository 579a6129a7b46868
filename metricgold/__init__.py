"""Depth in metres from one image, end to end.

Glossary, used with one meaning in every file:

scene          one capture or rendered place; the unit of splitting
frame          one rgb image with depth, valid mask and intrinsics
planar depth   distance along the optical axis (z), metres
ray distance   distance from the camera centre to the surface, metres
valid mask     pixels where planar depth is measured and in range
intrinsics     3x3 K in pixels of the present image; pixel centres at +0.5
log depth      planar depth mapped by logarithm onto [-1, 1]
encoding       what the VAE sees of log depth: itself, linear, sqrt or inverse
canonical depth  planar depth over the relative focal length: the same for every lens
latent         unscaled VAE mean; scaled on load
shard          one HDF5 file of latents; the unit of writing and resuming
latent cache   shards plus index of one data set
timestep       integer of the noise schedule, as in diffusers
step           one optimiser update
ensemble       several predictions of one image, merged
manifest       reviewed list of what exists upstream
twin           scenes rendered here in the formats of a published data set
index, receipt written last, says what a stage produced
checkpoint     folder that fully restores a model (and, with state, a run)
report, check  evaluated numbers; a named pass or fail with a note
version, alias MLflow's numbered model; movable name (champion, previous, candidate)
"""

import lazy_loader

__version__ = "0.1.0"

# The public face; __init__.pyi lists it. Resolved on first use: importing metricgold must not import torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
