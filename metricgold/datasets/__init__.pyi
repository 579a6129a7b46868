from . import own_data as own_data
from .content import (
    CONTENT_CACHE as CONTENT_CACHE,
    Content as Content,
    contents_by_scene as contents_by_scene,
    note_contents as note_contents,
    read_contents as read_contents,
    settle as settle,
)
from .frame import Frame as Frame, fit_frame as fit_frame, mirror_frame as mirror_frame
from .holes import fill_holes as fill_holes
from .import_frames import import_frames as import_frames
from .inspect.page import inspect_dataset as inspect_dataset
from .listing import FrameRef as FrameRef, Listing as Listing, is_clutter as is_clutter
from .manifest import (
    ALGORITHMS as ALGORITHMS,
    Archive as Archive,
    Manifest as Manifest,
    Source as Source,
    is_archive as is_archive,
    load_manifest as load_manifest,
    manifest_paths as manifest_paths,
    raw_folder as raw_folder,
    read_manifest as read_manifest,
    scene_splits as scene_splits,
)
from .manifest_check import WARNING as WARNING, check_manifests as check_manifests
from .own_data import write_ledger as write_ledger
from .readers import (
    IN_NO_SPLIT as IN_NO_SPLIT,
    READERS as READERS,
    NoFramesError as NoFramesError,
    list_frames as list_frames,
    open_dataset as open_dataset,
    read_frame as read_frame,
)
from .roles import (
    refuse_benchmarks as refuse_benchmarks,
    require_training as require_training,
    training_sets as training_sets,
    why_only_measured as why_only_measured,
)
from .sampling import (
    evenly_spaced as evenly_spaced,
    frame_batches as frame_batches,
    readable as readable,
    readable_frames as readable_frames,
    some_frames as some_frames,
)
from .splits import ClosedModel as ClosedModel, matches_name as matches_name
from .stored_depth import read_stored_depth as read_stored_depth
from .synthetic.lenses import frames_through_lens as frames_through_lens
from .synthetic.synthesize import synthesize as synthesize
from .synthetic.synthesize_benchmark import synthesize_benchmark as synthesize_benchmark
