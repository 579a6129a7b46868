"""What Pillow leaves aside of a PNG file: the checksums of its pixels, and the code of its colours."""

from zlib import crc32


def check_pixels(data: bytes) -> None:
    """Raise ValueError where the checksum of a chunk of pixels is wrong: Pillow takes the last rows unchecked."""
    view, place = memoryview(data), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(view[place : place + 4])
        name, stored = data[place + 4 : place + 8], data[end : end + 4]
        if name == b"IDAT" and crc32(view[place + 4 : end]) != int.from_bytes(stored):
            raise ValueError("its data are damaged: a chunk of pixels has another checksum")
        place = end + 4


def cicp(data: bytes) -> tuple[int, int] | None:
    """Primaries and transfer, codes of ITU-T H.273, by the chunk cICP; None without one."""
    place = data.find(b"\0\0\0\4cICP", 8, data.find(b"IDAT"))
    return None if place < 0 else (data[place + 8], data[place + 9])
