"""JPEG files that lost data, and such that only look as if they had."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from metricgold.images.photo import Photo, read_photo

SIZE = (320, 240)


def jpeg(mode: str = "RGB", **options) -> bytes:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    picture = picture.resize(SIZE, Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def photo_of(data: bytes, **options) -> Photo:
    return read_photo(data, max_pixels=1_000_000, name="a.jpg", **options)


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def check_refused(data: bytes, whole: bytes, reason: str = "") -> None:
    """It is refused for its reason; if so wished it is read, said to be truncated, and right as far as it goes."""
    with pytest.raises(ValueError, match=rf"^a\.jpg: .*damaged or end early: .*{reason}"):
        photo_of(data)
    part = photo_of(data, allow_truncated=True)
    assert part.truncated
    assert (part.rgb[:32] == by_pillow(whole)[:32]).all()


def scan_of(data: bytes) -> int:
    """Where the last scan's data start, roughly."""
    return data.rindex(b"\xff\xda") + 16


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:2:2"}, {"restart_marker_rows": 1}])
def test_whole_ones_have_the_pixels_that_pillow_sees(mode, options):
    data = jpeg(mode, **options)
    photo = photo_of(data, allow_truncated=True)
    assert (photo.rgb == by_pillow(data)).all()
    assert not photo.truncated


def test_a_lost_stretch_between_restart_marks():
    data = jpeg(restart_marker_rows=1)
    marks = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    lost = data[: marks[7] + 2] + data[marks[8] :]
    assert (by_pillow(lost) != by_pillow(data)).mean() > 0.02  # Pillow says nothing
    check_refused(lost, data, "premature end of data segment")


@pytest.mark.parametrize("content", [bytes(512), bytes(range(256)) * 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_lost_sector(content, mode):
    data = jpeg(mode)
    start = (scan_of(data) + len(data)) // 2 // 512 * 512
    check_refused(data[:start] + content + data[start + 512 :], data)


def test_a_lost_end():
    for data in (jpeg(), jpeg(progressive=True)):
        for share in (0.5, 0.8, 0.97):
            cut = data[: int(scan_of(data) * (1 - share) + len(data) * share)]
            for end in (b"", b"\xff\xd9", b"\xff", bytes(4096), bytes(4096) + b"\xff\xd9"):
                with pytest.raises(ValueError, match="damaged or end early"):
                    photo_of(cut + end)


@pytest.mark.parametrize(
    "trailer",
    [
        b"",
        b"\0\0\1\n\x0e\0\0\0Image_UTC_Data1700000000000SEFHk\0\0\0SEFT",
        b"\xff\xc6\xff\0\xff" + bytes(range(255)) * 40,
        b"\xff\xe1\xff\xff" + b"abc" * 99,
    ],
)
def test_without_an_end_mark_but_whole(trailer):
    whole = jpeg()
    photo = photo_of(whole[:-2] + trailer)
    assert (photo.rgb == by_pillow(whole)).all()
    assert not photo.truncated


def test_without_an_end_mark_scans_of_a_progressive_one_may_be_missing():
    data = jpeg(progressive=True)
    first_scans = data[: data.rindex(b"\xff\xc4")]
    with pytest.raises(ValueError, match="no end mark, so scans may be missing"):
        photo_of(first_scans)
    assert photo_of(first_scans, allow_truncated=True).truncated


def test_bytes_that_belong_to_no_pixel_cost_nothing():
    data, clean = jpeg(), by_pillow(jpeg())
    tables = data.index(b"\xff\xdb")
    for junk in (b"\0\1\2\3", b"junk" * 99 + b"\xff\0\xff\xd1"):
        assert (photo_of(data[:tables] + junk + data[tables:]).rgb == clean).all()
    for filling in (b"\0", b"\x5a", b"\1\2\3\4", bytes(16)):  # some cameras fill up to an even length, or to a block
        assert (photo_of(data[:-2] + filling + data[-2:]).rgb == clean).all()
    for lost in (b"\1\2\3\4" * 5, bytes(40)):
        with pytest.raises(ValueError, match=r"\d+ extraneous bytes"):
            photo_of(data[:-2] + lost + data[-2:])
    assert (photo_of(data + b"\xff\xd9" + bytes(999)).rgb == clean).all()


def test_junk_in_the_head_does_not_hide_what_was_lost():
    data = jpeg()
    tables, middle = data.index(b"\xff\xdb"), (scan_of(data) + len(data)) // 2
    damaged = data[:tables] + b"junk" + data[tables:middle] + bytes(512) + data[middle + 512 :]
    check_refused(damaged, data)


def test_a_rare_sampling_is_left_to_pillow():
    data = bytearray(jpeg(subsampling="4:4:4"))
    frame = data.index(b"\xff\xc0")
    data[frame + 11] = 0x31  # colours at a third of the width
    assert (photo_of(bytes(data)).rgb == by_pillow(bytes(data))).all()
