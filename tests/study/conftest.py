"""A tiny project with a tiny study: two losses, two seeds, two ways to predict, one benchmark."""

from pathlib import Path

import pytest
import yaml

from tests.conftest import DATASET, TINY, write_tartanair
from tests.evaluate.test_benchmark import write_frames

STUDY = {
    "question": "Is the one loss better than the other?",
    "fixed": {
        "depth_vae": {"num_steps": 2, "crop": 16},
        "train": {"num_steps": 4, "decay_steps": 4},
        "evaluate": {"ensemble_size": 1},
        "benchmark": {"ensemble_size": 1},
    },
    "stand_in": {"train": {"checkpoint_every": 2}},
    "factors": {"loss": {"l2": None, "l1": {"train": {"loss": "l1"}}}},
    "inference": {"steps": {1: {"num_inference_steps": 1}, 2: {"num_inference_steps": 2}}},
    "seeds": [0, 1],
    "budget_minutes": 5,
    "measures": {"benchmarks": ["mine"]},
}


def write_study(folder: Path, name: str = "tiny", **changes) -> Path:
    (folder / "studies").mkdir(exist_ok=True)
    path = folder / f"studies/{name}.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("study")
    (root / "params.yaml").write_text(yaml.safe_dump(TINY.model_dump(mode="json")))
    write_tartanair(root / "data/raw" / DATASET)
    write_frames(root / "data/benchmarks/mine", per_scene=1)
    write_study(root)
    return root
