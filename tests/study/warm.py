"""What the forkserver of these tests has done before it forks: what torch and diffusers do at their first use.

A thread would not survive the fork: the tests run with one thread each.
"""

from pathlib import Path

import torch

import metricgold.study.stage
import metricgold.study.worker
from metricgold.model import new_unet, new_vae
from metricgold.train import step_flops
from tests.conftest import TINY

assert metricgold.study.stage and metricgold.study.worker
step_flops(TINY, Path("none"), Path("none"))
unet, vae = new_unet(TINY.backbone.stand_in), new_vae(TINY.backbone.stand_in)
unet(torch.zeros(1, 4, 16, 24), 0, torch.zeros(1, 2, 8)).sample.sum().backward()
vae(torch.zeros(1, 3, 32, 48)).sample.sum().backward()
torch.optim.AdamW(unet.parameters(), fused=True).step()
