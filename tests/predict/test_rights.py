"""What S3 has to allow a batch job: its own prefixes, and nothing else of the bucket."""

from dataclasses import replace

import pytest

from metricgold.operate import diagnose
from metricgold.storage import open_bucket, s3_client as client_module
from tests.predict.test_stage import picture, run
from tests.support.limited_s3 import LimitedClient
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401

REFUSED = r"access denied \(AccessDenied\)"


@pytest.fixture
def place(s3_bucket, monkeypatch) -> str:  # noqa: F811
    """A bucket with photos and others' objects; from then on a key may read team/photos/ and write team/depth/."""
    for key in ("team/photos/0.png", "team/photos/1.png", "secret/0.png"):
        s3_client().put_object(Bucket=s3_bucket, Key=key, Body=picture(int(key[-5])))
    make = client_module.make_client
    monkeypatch.setattr(
        client_module, "make_client", lambda: LimitedClient(make(), ("team/photos/",), ("team/depth/",))
    )
    return f"s3://{s3_bucket}"


def test_a_job_needs_no_more_of_a_bucket_than_its_prefixes(place):
    source, sink = f"{place}/team/photos", f"{place}/team/depth"
    first, again = run(source, sink), run(source, sink)
    assert (first["images_done"], first["images_kept"], again["images_kept"]) == (2, 0, 2)


@pytest.mark.parametrize("given", ["team/photos/*.png", "team/photos/0.png", "team/photos/", "team/photos/**/?.png"])
def test_each_way_to_name_an_input_asks_for_nothing_outside_its_prefix(place, given):
    assert run(f"{place}/{given}", f"{place}/team/depth")["images_done"] == (1 if given.endswith("/0.png") else 2)


@pytest.mark.parametrize(
    ("given", "output"),
    [("team", "team/depth"), ("", "team/depth"), ("secret", "team/depth"), ("team/photos", "secret")],
)
def test_a_job_beyond_its_prefixes_is_refused_in_a_line(place, given, output):
    with pytest.raises(PermissionError, match=rf"^s3://.*{REFUSED}$"):
        run(f"{place}/{given}", f"{place}/{output}")


def test_what_is_missing_is_told_from_what_is_refused(place):
    bucket = open_bucket(f"{place}/team/depth", create=True)
    assert not bucket.exists("none")
    with pytest.raises(FileNotFoundError, match="team/depth/none: no such key"):
        bucket.read("none")
    with pytest.raises(PermissionError, match=REFUSED):
        replace(bucket, prefix="secret/").read("0.png")


def test_the_doctor_needs_no_more_either(place, tmp_path):
    found = {one.name: one for one in diagnose(tmp_path, [], f"{place}/team/depth")}
    assert found["s3"].state == "ok", found["s3"]
    assert "clocks within" in found["s3"].text
