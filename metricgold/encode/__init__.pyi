from .from_remote import encode_from_remote as encode_from_remote
from .stage import encode as encode, leave_empty as leave_empty
