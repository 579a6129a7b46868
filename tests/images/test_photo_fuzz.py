"""Broken photographs: what read_photo does with files that were whole once."""

import io
import json
import resource
import signal
import subprocess
import sys
import time
import zlib
from random import Random

import numpy as np
from PIL import Image, ImageCms

from metricgold.images.photo import NotAnImage, Photo, read_photo
from metricgold.images.pillow_settings import quieten_image_libraries

MAX_PIXELS = 1_000_000
SECONDS_EACH, MEMORY_MB, GROWTH_MB = 5, 3000, 150
EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 10**6, 10**9)


def test_mutated_photographs_are_read_or_refused_with_a_reason():
    command = [sys.executable, "-W", "always", __file__, "0", "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)  # and nothing else was printed
    assert told["read"] + told["refused"] == 500
    assert min(told["read"], told["refused"]) > 50  # else the files are not worth reading
    assert told["growth_mb"] < GROWTH_MB


def whole_files() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8)
    rgba = Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769).update({0x920A: 6.6, 0xA20E: 4000.0, 0xA002: 64, 0xA405: 26})
    about = {"exif": exif.tobytes(), "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    moving = {"save_all": True, "append_images": [rgba.rotate(90)]}
    return [
        *(saved(rgb, "JPEG", **options) for options in ({}, about, {"progressive": True}, {"restart_marker_rows": 1})),
        *(saved(image, "JPEG") for image in (grey, rgb.convert("CMYK"))),
        *(saved(image, "PNG") for image in (rgb, rgba, grey, deep, grey.convert("1"), rgba.convert("LA"))),
        *(saved(rgb, "PNG", **about), saved(palette, "PNG", transparency=3), saved(rgba, "PNG", **moving)),
        *(saved(rgb, "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        *(saved(rgb, "TIFF", **about), saved(deep, "TIFF"), saved(rgb.convert("CMYK"), "TIFF")),
        *(saved(rgb, "WEBP", **about), saved(rgba, "WEBP", lossless=True), saved(rgba, "WEBP", **moving)),
    ]


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flip_bits(data: bytearray, others: list[bytes], random: Random) -> None:
    for _ in range(random.choice([1, 4, 30])):
        data[place_in(data, random)] ^= 1 << random.randrange(8)


def truncate(data: bytearray, others: list[bytes], random: Random) -> None:
    del data[random.randrange(len(data)) :]


def splice(data: bytearray, others: list[bytes], random: Random) -> None:
    donor = random.choice([bytes(data), *others])
    start, length = random.randrange(len(donor)), random.randrange(1, 200)
    place = place_in(data, random)
    data[place : place + random.choice([0, length])] = donor[start : start + length]


def lie(data: bytearray, others: list[bytes], random: Random) -> None:
    """Numbers of the head become extreme: sizes, counts, offsets, lengths."""
    for _ in range(random.choice([1, 3])):
        width, order = random.choice([1, 2, 4]), random.choice(["big", "little"])
        place = place_in(data, random)
        data[place : place + width] = (random.choice(EXTREMES) % 256**width).to_bytes(width, order)


def place_in(data: bytearray, random: Random) -> int:
    return random.randrange(min(len(data), random.choice([40, 300, len(data)])))


def with_true_checksums(png: bytes) -> bytes:
    """Chunks whose CRC fits again: else no lie would come past it."""
    fixed, place = bytearray(png), 8
    while place + 12 <= len(fixed):
        length = int.from_bytes(fixed[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(fixed)


def mutated(files: list[bytes], random: Random) -> bytes:
    data = bytearray(random.choice(files))
    for _ in range(random.choice([1, 1, 2])):
        random.choice([flip_bits, truncate, splice, lie])(data, files, random)
        if not data:
            break
    return with_true_checksums(bytes(data)) if data[:4] == b"\x89PNG" and random.random() < 0.8 else bytes(data)


def tried(data: bytes, *, allow_truncated: bool) -> str:
    """How it went: `read` or `refused`; anything else is raised."""
    try:
        photo = read_photo(data, max_pixels=MAX_PIXELS, max_aspect=100, allow_truncated=allow_truncated, name="a.jpg")
    except (ValueError, NotAnImage) as error:
        assert str(error).startswith("a.jpg: "), error
        assert len(str(error)) > 15, error
        assert " object at 0x" not in str(error), error
        return "refused"
    check(photo)
    return "read"


def check(photo: Photo) -> None:
    height, width, channels = photo.rgb.shape
    assert (photo.rgb.dtype, channels) == (np.uint8, 3)
    assert 1 <= height * width <= MAX_PIXELS
    assert photo.focal_px is None or np.isfinite(photo.focal_px)


def main(seed: int, count: int) -> None:
    quieten_image_libraries()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB << 20, MEMORY_MB << 20))
    random, files = Random(seed), whole_files()
    told = {"read": 0, "refused": 0}
    for data in files:
        assert tried(data, allow_truncated=False) == "read"
    before_kb, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    for number in range(count):
        data = mutated(files, random)
        signal.alarm(SECONDS_EACH)  # its default is the end of this process
        started = time.perf_counter()
        try:
            told[tried(data, allow_truncated=number % 2 == 0)] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}, file {number}: {data[:64]!r}") from error
        slowest = max(slowest, time.perf_counter() - started)
    signal.alarm(0)
    growth_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    print(json.dumps(told | {"growth_mb": growth_mb, "slowest_s": slowest}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
