from .depth_vae import train_depth_vae as train_depth_vae
from .gpu_lock import cards as cards, one_of as one_of, only_job as only_job
from .plan import plan_training as plan_training
from .run import train as train
