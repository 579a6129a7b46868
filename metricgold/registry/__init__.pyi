from .lineage import dvc_outputs as dvc_outputs
from .lineage_page import (
    broken_links as broken_links,
    render_page as render_page,
    summary_of as summary_of,
    tree_lines as tree_lines,
)
from .live import track as track
from .model_card import card_of_folder as card_of_folder, card_of_version as card_of_version
from .promotion import promote as promote, rollback as rollback
from .provenance import trace as trace
from .pyfunc import fetch_model as fetch_model
from .scoring import _load_pyfunc as _load_pyfunc
from .studies import track_study as track_study
from .version_table import history_lines as history_lines, list_versions as list_versions, table_lines as table_lines
from .versions import register as register
