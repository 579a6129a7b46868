from .definition import (
    Run as Run,
    Study as Study,
    load_study as load_study,
    runs_of as runs_of,
    study_names as study_names,
)
from .plan import describe_plan as describe_plan, plan_study as plan_study
from .report import PAGE as PAGE, render_study as render_study, write_report as write_report
from .results import Results as Results
from .stage import run_study as run_study
