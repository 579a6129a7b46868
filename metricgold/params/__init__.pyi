from .paths import (
    MANIFESTS as MANIFESTS,
    PROFILES as PROFILES,
    SHIPPED as SHIPPED,
    Folders as Folders,
    require_dataset_name as require_dataset_name,
)
from .profiles import list_profiles as list_profiles, use_profile as use_profile
from .project import lay_out_project as lay_out_project
from .sections import (
    Backbone as Backbone,
    Benchmark as Benchmark,
    DatasetName as DatasetName,
    DepthVae as DepthVae,
    Download as Download,
    Encode as Encode,
    Evaluate as Evaluate,
    Inference as Inference,
    LogDepthRange as LogDepthRange,
    Mirror as Mirror,
    Params as Params,
    Predict as Predict,
    Promote as Promote,
    StandIn as StandIn,
    Synthesize as Synthesize,
    SynthesizeBenchmark as SynthesizeBenchmark,
    Train as Train,
    VaeFloor as VaeFloor,
    Validation as Validation,
    load_params as load_params,
)
from .words import (
    DTYPES as DTYPES,
    FIRST_ROUND as FIRST_ROUND,
    OUTPUTS as OUTPUTS,
    PREDICTION_TYPES as PREDICTION_TYPES,
    PRESETS as PRESETS,
    SPACINGS as SPACINGS,
    Dtype as Dtype,
    Output as Output,
    PredictionType as PredictionType,
    Preset as Preset,
    Spacing as Spacing,
)
