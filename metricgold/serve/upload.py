"""The photograph in the body of a request, read within limits and never put on a disk."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

FORM_BYTES = 16 << 10  # of a form around its photograph
NAME = "upload"  # of a photograph that has none
MAX_NAME = 200  # characters


@dataclass(frozen=True, slots=True)
class Upload:
    """The file of a photograph, and its name by the client."""

    name: str
    data: bytes


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """The body, or the one file of a form. HTTPException 413 beyond max_bytes, 400 for a broken or another form."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
        return await _file_of_form(request, max_bytes)
    return Upload(NAME, b"".join([chunk async for chunk in _counted(request, max_bytes)]))


async def _file_of_form(request: Request, max_bytes: int) -> Upload:
    most = max_bytes + FORM_BYTES
    parser = MultiPartParser(
        request.headers, _counted(request, most), max_files=1, max_fields=0, max_part_size=FORM_BYTES
    )
    parser.spool_max_size = most + 1  # beyond it a part would be put on the disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"expected a form of one file, the photograph: {error.message}") from error
    file = next((value for value in form.values() if isinstance(value, UploadFile)), None)
    if file is None:
        raise HTTPException(400, "the form has no file, expected one: the photograph")
    try:
        return Upload(name_of(file.filename or ""), await file.read())
    finally:
        await form.close()


async def _counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The chunks of the body. HTTPException 413 as soon as they are more than max_bytes, or will be."""
    too_large = HTTPException(413, f"the body is more than {max_bytes} bytes")
    if (length := request.headers.get("content-length", "")).isdecimal() and int(length) > max_bytes:
        raise too_large
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if read > max_bytes:
            raise too_large
        yield chunk


def name_of(stated: str) -> str:
    """The last part of a file's name as a client states it."""
    return stated.replace("\\", "/").rpartition("/")[2].strip()[-MAX_NAME:] or NAME
