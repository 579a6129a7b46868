from .depth_vae import train_depth_vae as train_depth_vae
from .gpu_lock import free_gpu as free_gpu, gpu_names as gpu_names, only_job as only_job
from .plan import plan_training as plan_training
from .sessions import SESSIONS as SESSIONS, state_of_model as state_of_model
from .stage import train as train
