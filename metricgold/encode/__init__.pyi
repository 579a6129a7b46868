from .from_remote import encode_from_remote as encode_from_remote
from .stage import (
    SPLIT as SPLIT,
    encode as encode,
    leave_empty as leave_empty,
    source_digest as source_digest,
    source_digests as source_digests,
)
