from .backbone import (
    backbone_digest as backbone_digest,
    load_backbone as load_backbone,
    load_depth_vae as load_depth_vae,
    load_vae as load_vae,
    made_from as made_from,
    prepare_backbone as prepare_backbone,
    vae_digest as vae_digest,
)
from .camera_token import CameraToken as CameraToken, new_camera_token as new_camera_token
from .configs import check_texts as check_texts
from .digest import digest_model as digest_model
from .ensemble import EnsembleOptions as EnsembleOptions
from .gpu_memory import peak_gpu_memory_mb as peak_gpu_memory_mb
from .inputs import stated_camera as stated_camera
from .memory import peak_memory_gb as peak_memory_gb, reset_peak_memory as reset_peak_memory
from .one_step_graph import OneStepGraph as OneStepGraph
from .pipeline import (
    EmptyPrompt as EmptyPrompt,
    MetricGoldPipeline as MetricGoldPipeline,
    ModelMixin as ModelMixin,  # where diffusers finds EmptyPrompt, it also looks for the base class that can load it
    Prediction as Prediction,
    load_pipeline as load_pipeline,
)
from .stand_in import new_unet as new_unet, new_vae as new_vae
from .uncertainty import UncertaintyScale as UncertaintyScale, fit_scale as fit_scale
from .vae import (
    check_size as check_size,
    decode_log_depth as decode_log_depth,
    default_device as default_device,
    encode_log_depth as encode_log_depth,
    encode_rgb as encode_rgb,
    filled_log_depth as filled_log_depth,
    latent_valid_mask as latent_valid_mask,
    rgb_to_tensor as rgb_to_tensor,
    vae_factor as vae_factor,
)
