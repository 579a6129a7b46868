"""Which commit a run was made from, and whether its code and params were those of that commit."""

import subprocess

import pytest

from metricgold.storage.checkout import git_commit

FILES = ("params.yaml", "dvc.lock", "metrics/evaluate.json", "reports/headline.json", "data/raw/mine/ledger.json")
FILES += ("studies/results/decoder.csv",)


@pytest.fixture
def checkout(tmp_path):
    """A project below the top of its repository, with figures that were committed."""
    project = tmp_path / "project"
    for name in FILES:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("one")
    (tmp_path / "code.py").write_text("one")
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return project


def test_what_stages_write_leaves_a_checkout_clean(checkout):
    for name in FILES[1:]:
        (checkout / name).write_text("two")
    (checkout / "notes.txt").touch()  # not tracked
    sha, dirty = git_commit(checkout)
    assert len(sha) == 40 and not dirty


@pytest.mark.parametrize("name", ["params.yaml", "../code.py"])
def test_params_and_code_that_changed_make_it_dirty(checkout, name):
    (checkout / name).write_text("two")
    assert git_commit(checkout)[1]
