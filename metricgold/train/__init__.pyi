from .cost import (
    flop_counter as flop_counter,
    flops_per_sample as flops_per_sample,
    forward_flops as forward_flops,
    measured_flops_per_s as measured_flops_per_s,
    vae_flops as vae_flops,
)
from .depth_vae import train_depth_vae as train_depth_vae
from .gpu_lock import free_gpu as free_gpu, gpu_names as gpu_names, only_job as only_job
from .plan import (
    ASSUMED_MFU as ASSUMED_MFU,
    GPUS as GPUS,
    latent_shape as latent_shape,
    model_configs as model_configs,
    num_training_frames as num_training_frames,
    plan_training as plan_training,
    refusal as refusal,
    step_flops as step_flops,
)
from .sessions import SESSIONS as SESSIONS, hardware as hardware, state_of_model as state_of_model
from .stage import train as train
