"""The HTTP of a server: who may ask, what an answer looks like, and its page."""

import asyncio
import hmac
import io
import logging
import time
import zipfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlsplit

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metricgold.images import DEPTH_COLOURS, ERROR_COLOURS, NotAnImage, css_gradient, load_template
from metricgold.params import Output, Preset
from metricgold.predict import File, stated_for_all
from metricgold.serve.batcher import ModelFailed
from metricgold.serve.metrics import Metrics
from metricgold.serve.service import Busy, Service, Wanted
from metricgold.serve.upload import read_upload

log = logging.getLogger(__name__)
T = TypeVar("T")

DEPTH = "/v1/depth"
CLIENT_LEFT = 499  # as other servers log it; nobody reads this answer
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGE = Path(__file__).with_name("page")
PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class DepthQuery(BaseModel):
    """What the query of POST /v1/depth may say."""

    model_config = ConfigDict(extra="forbid")

    format: Annotated[list[Output], Field(min_length=1, description="A kind of output; several come as a ZIP.")] = [
        "log-png"
    ]
    preset: Annotated[Preset | None, Field(description="Steps and runs; those of the server if not given.")] = None
    focal_px: Annotated[float | None, Field(description="Focal length in pixels of the upright image.")] = None
    focal_35mm: Annotated[float | None, Field(description="Focal length on 35 mm film.")] = None
    fov_deg: Annotated[float | None, Field(description="Field of view over the longer side, in degrees.")] = None


class Fault(BaseModel):
    """Why a request has no answer, in one line."""

    error: str


class Model(BaseModel):
    """What is served, and what it takes."""

    name: str = Field(examples=["metricgold/3"])
    digest: str = Field(description="Of the checkpoint's folder.", examples=["4be1" * 16])
    one_step: bool
    needs_camera: bool = Field(description="Whether the scale of depth follows from the focal length.")
    params: dict[str, Any] = Field(description="Those that decide the numbers where no preset is given.")
    calibration: dict[str, Any] | None = Field(description="By which depth is corrected, of one camera.")
    presets: list[Preset]
    formats: list[Output]
    max_bytes: int
    max_pixels: int


def create_app(service: Service, *, token: str | None = None) -> FastAPI:
    """The application; without a token it answers to the names of this machine's loopback only."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="MetricGold",
        description="Depth in metres from one photograph.",
        version=version("metricgold"),
        lifespan=lifespan,
        docs_url=None,  # they load scripts of other hosts
        redoc_url=None,
        dependencies=[Depends(_refuse_other_sites)],
    )
    app.add_middleware(Measured, metrics=service.metrics)
    if token is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK, www_redirect=False)
    _answer_faults(app)
    _add_page(app)
    _add_health(app, service)
    _add_model(app, service, [Depends(_Token(token))])
    return app


# --- who may ask ----------------------------------------------------------------------------------------------


class _Token:
    """Refuses requests that do not carry the token, if there is one."""

    def __init__(self, token: str | None) -> None:
        self.expected = None if token is None else f"Bearer {token}".encode()

    def __call__(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if self.expected is not None and not hmac.compare_digest(given, self.expected):
            raise HTTPException(401, "expected the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})


def _refuse_other_sites(request: Request) -> None:
    """Raise HTTPException 403 for what a page of another site sends, which a browser lets it do without asking."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "pages of other sites may not ask")


# --- faults ---------------------------------------------------------------------------------------------------


def _answer_faults(app: FastAPI) -> None:
    """One line of JSON for every fault, without anything of the server's inside."""

    @app.exception_handler(StarletteHTTPException)
    async def _(_: Request, error: StarletteHTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> Response:
        faults = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}, got {one['input']!r:.80}" for one in error.errors())
        return JSONResponse({"error": "; ".join(faults)}, 422)

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> Response:
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        return JSONResponse({"error": "the server failed; its log says why"}, 500)


# --- routes ---------------------------------------------------------------------------------------------------


def _add_page(app: FastAPI) -> None:
    colours = {"depth_colours": css_gradient(DEPTH_COLOURS), "uncertainty_colours": css_gradient(ERROR_COLOURS)}
    files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in PAGE_TYPES}
    files["index.html"] = load_template(PAGE / "index.html.j2").render(colours).encode()

    @app.get("/", include_in_schema=False)
    @app.get("/page/{name}", include_in_schema=False)
    def page(name: str = "index.html") -> Response:
        if name not in files:
            raise HTTPException(404, "no such file")
        headers = {
            "Content-Security-Policy": PAGE_POLICY,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
        }
        return Response(files[name], media_type=PAGE_TYPES[Path(name).suffix], headers=headers)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Whether the server lives")
    async def healthz() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/readyz", summary="Whether it would take another request", responses={503: {"model": Fault}})
    async def readyz() -> dict[str, bool]:
        if not service.is_ready:
            raise HTTPException(503, "not ready: as many requests are here as the server takes, or it is ending")
        return {"ready": True}


def _add_model(app: FastAPI, service: Service, guards: Sequence[Any]) -> None:
    @app.get("/metrics", summary="Figures for Prometheus", dependencies=guards)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/model", summary="What is served, and what it takes", dependencies=guards)
    async def model() -> Model:
        max_pixels = service.model.jobs[None].params.max_pixels
        limits = {"max_bytes": service.limits.max_bytes, "max_pixels": max_pixels}
        return Model(**service.model.facts, formats=list(service.kinds), **limits)

    @app.post(DEPTH, dependencies=guards, response_class=Response, **_DEPTH_DOCUMENTATION)
    async def depth(request: Request, query: Annotated[DepthQuery, Query()]) -> Response:
        """A photograph's depth as a file that `metricgold predict` would write; several formats come as a ZIP.

        The body is the photograph, or a form with one file. EXIF's camera counts unless the query states one.
        """
        try:
            return await _answer(service, request, query)
        except ClientDisconnect:
            service.metrics.left.inc()
            return Response(status_code=CLIENT_LEFT)


async def _answer(service: Service, request: Request, query: DepthQuery) -> Response:
    """The files that are asked for. HTTPException for what cannot be; ClientDisconnect where nobody waits any more."""
    limits = service.limits
    try:
        cameras = stated_for_all(focal_px=query.focal_px, focal_35mm=query.focal_35mm, fov_deg=query.fov_deg)
        wanted = Wanted(tuple(dict.fromkeys(query.format)), query.preset, cameras)
        with service.admitted():
            async with _limit(limits.upload_s, 408, f"the photograph did not arrive within {limits.upload_s:g} s"):
                upload = await read_upload(request, limits.max_bytes)
            async with _limit(limits.timeout_s, 503, f"no depth within {limits.timeout_s:g} s"):
                files = await unless_client_leaves(request, service.depth(upload, wanted))
    except Busy as error:
        raise HTTPException(429, str(error), {"Retry-After": "1"}) from error
    except NotAnImage as error:
        raise HTTPException(415, str(error)) from error
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    except ModelFailed as error:
        raise HTTPException(500, "the model has no depth for this photograph; the server's log says why") from error
    return answer_of(upload.name, files)


@asynccontextmanager
async def _limit(seconds: float, status: int, message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise HTTPException(status, message) from error


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns. Cancels it and raises ClientDisconnect where the client leaves; its body was read."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks: tuple[asyncio.Task[T], asyncio.Task[None]] = asyncio.create_task(work), asyncio.create_task(leaving())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def answer_of(name: str, files: Sequence[File]) -> Response:
    """One file as it is, several as a ZIP, each by the name that `metricgold predict` would give it."""
    if len(files) == 1:
        (file,) = files
        return _attachment(name + file.suffix, file.data, file.content_type)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # not compressed: most kinds are already
        for file in files:
            archive.writestr(zipfile.ZipInfo(name + file.suffix), file.data)
    return _attachment(f"{name}.zip", buffer.getvalue(), "application/zip")


def _attachment(name: str, data: bytes, content_type: str) -> Response:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " ._-") else "_" for c in name)
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
    return Response(data, media_type=content_type, headers={"Content-Disposition": disposition})


class Measured:
    """Counts and times the requests of depth, and tells browsers to take each answer for what it says it is."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, counts = time.perf_counter(), scope["path"] == DEPTH

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
                if counts:
                    self.metrics.requests.labels(message["status"]).inc()
                    self.metrics.seconds.observe(time.perf_counter() - started)
            await send(message)

        await self.app(scope, receive, noting)


# --- how OpenAPI describes it ---------------------------------------------------------------------------------

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {"type": "object", "required": ["image"], "properties": {"image": _BINARY["schema"]}},
    "encoding": {"image": {"contentType": "image/*"}},
}
_SIDE_CAR = {
    "input": "photo.jpg",
    "unit": "metres",
    "kind": "planar depth",
    "width": 640,
    "height": 480,
    "median_m": 2.31,
    "focal_px": 525.0,
    "focal_from": "exif",
    "model": "metricgold/3",
}


def _fault(description: str, example: str) -> dict[str, Any]:
    content = {"application/json": {"example": {"error": example}}}
    return {"model": Fault, "description": description, "content": content}


_DEPTH_DOCUMENTATION: dict[str, Any] = {
    "summary": "Depth of a photograph",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _FORM, "image/*": _BINARY, "application/octet-stream": _BINARY},
        }
    },
    "responses": {
        200: {
            "description": "The file, or a ZIP of several.",
            "content": {
                "image/png": _BINARY,
                "application/zip": _BINARY,
                "model/gltf-binary": _BINARY,
                "application/json": {"example": _SIDE_CAR},
            },
        },
        400: _fault("A form that cannot be read.", "the form has no file, expected one: the photograph"),
        401: _fault("The token is missing or wrong.", "expected the header Authorization: Bearer TOKEN"),
        408: _fault("The body came too slowly.", "the photograph did not arrive within 30 s"),
        413: _fault("The body is too large.", "the body is more than 33554432 bytes"),
        415: _fault("Not an image.", "notes.txt: not an image of a known format, or its head is broken"),
        422: _fault("A broken image, or a query that cannot be.", "query.preset: Input should be 'paper', ..."),
        429: _fault("Too many requests; ask again after Retry-After seconds.", "64 requests are here, ..."),
        500: _fault("The model failed.", "the model has no depth for this photograph; the server's log says why"),
        503: _fault("It took too long.", "no depth within 120 s"),
    },
}
