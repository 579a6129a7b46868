from .service import Limits as Limits
from .stage import serve as serve
