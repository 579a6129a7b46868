from .from_remote import encode_from_remote as encode_from_remote
from .scene_encoder import encode as encode
