"""The application: its routes, and how they answer."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ved_cli.read import fields
from ved_cli.serving.batching import Batcher, FullError, Places
from ved_cli.serving.bodies import GONE, OPTIONS, body, drain
from ved_cli.serving.engine import Engine, Job
from ved_cli.serving.metrics import Metrics
from ved_core.errors import ImageError, VedError

T = TypeVar("T")
LIMITS = ("batch_size", "max_bytes", "max_images", "max_pixels")
PATHS = ("/", "/read", "/stream", "/health", "/ready", "/metrics")
log = logging.getLogger("ved.serve")


class Server:
    """What the routes share."""

    def __init__(self, engine: Engine, about: dict[str, Any], failed: Callable[[], None]) -> None:
        """`failed` is called where the engine cannot be made ready."""
        self.engine, self.settings, self.failed = engine, engine.settings, failed
        self.about = about
        self.metrics = Metrics(self.settings.buckets)
        self.batcher = Batcher(engine, self.metrics)
        self.ready = False
        self.tasks: list[asyncio.Task[None]] = []
        self.metrics.watch("ved_waiting_images", "Images that no batch has taken yet", lambda: self.batcher.waiting)
        self.metrics.watch("ved_taken_places", "Places that requests hold", lambda: self.batcher.taken)
        self.metrics.watch("ved_ready", "Whether all is compiled", lambda: self.ready)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """From the first request that can be taken until the last is answered."""
        most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, self.settings.max_pixels
        self.decoders = asyncio.Semaphore(2 * self.settings.batch_size)
        self.tasks = [asyncio.create_task(self._prepare()), asyncio.create_task(self.batcher.run())]
        try:
            yield
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            await asyncio.to_thread(self.engine.close)
            Image.MAX_IMAGE_PIXELS = most

    async def _prepare(self) -> None:
        try:
            start = time.perf_counter()
            await self.engine.warm_up()
            self.ready = True
            log.info("ready: batches of %s, compiled in %.1f s", self.settings.buckets, time.perf_counter() - start)
        except Exception:
            log.exception("the model could not be made ready")
            self.failed()

    @property
    def alive(self) -> bool:
        """Whether batches are read, or will be."""
        return not any(task.done() and (task.cancelled() or task.exception()) for task in self.tasks)

    @contextlib.contextmanager
    def place(self) -> Iterator[Places]:
        """Places for a request, one at first. Raises HTTPException where there is none, or nothing is ready."""
        if not self.ready:
            raise HTTPException(503, "the model is being compiled: GET /ready says when it is", {"Retry-After": "1"})
        try:
            with self.batcher.places() as places:
                places.take(1)
                yield places
        except FullError as full:
            raise HTTPException(429, str(full), {"Retry-After": str(full.seconds)}) from None

    async def images(self, contents: Sequence[tuple[str, bytes]]) -> list[Any]:
        """Each image processed, or its ImageError, off the event loop."""

        async def one(content: bytes) -> Any:
            try:
                async with self.decoders:
                    return await run_in_threadpool(self.engine.process, content)
            except ImageError as error:
                return error

        return await asyncio.gather(*(one(content) for _, content in contents))

    async def read(self, request: Request) -> Response:
        """Read the images of a request."""
        with self.place() as places:
            contents, options = await body(request, self.settings)
            places.take(len(contents))
            processed = await self.images(contents)
            pixels = [x for x in processed if not isinstance(x, ImageError)]
            jobs = await run_in_threadpool(self.engine.jobs, pixels, options)
            self.metrics.images("bad", len(processed) - len(pixels))
            if not jobs:
                raise HTTPException(422, f"{contents[0][0]}: {processed[0]}")
            readings = iter(await unless_gone(request, self.batcher.put(jobs)))
            self.metrics.images("read", len(jobs))
        entries = [
            {"image": name, **({"error": str(x)} if isinstance(x, ImageError) else fields(next(readings)))}
            for (name, _), x in zip(contents, processed, strict=True)
        ]
        return JSONResponse({"readings": entries})

    async def stream(self, request: Request) -> Response:
        """Read one image and send its text as it comes, as server-sent events."""
        if not self.engine.streams:
            raise HTTPException(422, "this server searches with beams, which decide at the end: POST to /read")
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.place())
            contents, options = await body(request, self.settings)
            if len(contents) > 1:
                raise HTTPException(422, f"{len(contents)} images: a stream is of one")
            (processed,) = await self.images(contents)
            if isinstance(processed, ImageError):
                self.metrics.images("bad")
                raise HTTPException(422, f"{contents[0][0]}: {processed}")
            (job,) = await run_in_threadpool(self.engine.jobs, [processed], options)
            return Events(self._events(job), stack.pop_all())

    async def _events(self, job: Job) -> AsyncIterator[str]:
        text = ""
        try:
            async for piece in self.engine.stream(job):
                text += piece
                yield event("piece", {"text": piece})
        except Exception:
            log.exception("a stream failed")
            yield event("error", {"error": INTERNAL})
            return
        self.metrics.images("read")
        yield event("end", {"text": text})


class Events(StreamingResponse):
    """Server-sent events, which hold something until they have been sent, or the client has gone."""

    def __init__(self, events: AsyncIterator[str], held: contextlib.ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers=NO_CACHE)
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.held:
            await super().__call__(scope, receive, send)


NO_CACHE = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
INTERNAL = "internal error: the server's log says more"


def event(name: str, data: Any) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


async def unless_gone(request: Request, futures: Sequence[asyncio.Future[T]]) -> list[T]:
    """The futures' results; they are cancelled where the client goes away."""
    results = asyncio.gather(*futures)
    gone = asyncio.ensure_future(left(request))
    try:
        either: list[asyncio.Future[Any]] = [results, gone]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not results.done():
            raise HTTPException(GONE, "the client has gone")
        return await results
    finally:
        gone.cancel()
        # That they were cancelled is nobody's question any more: unasked, asyncio would complain.
        results.add_done_callback(lambda done: done.cancelled() or done.exception())
        results.cancel()


async def left(request: Request) -> None:
    """Wait until the client goes away. Its request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Counted:
    """Counts requests by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            return await self.app(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.request(path, status, time.perf_counter() - start)


def make_app(engine: Engine, about: dict[str, Any], failed: Callable[[], None] = lambda: None) -> FastAPI:
    """The application over an engine. `about`: what GET / says beside limits and options; `failed`: what to do where
    the engine cannot be made ready."""
    server = Server(engine, about, failed)
    app = FastAPI(title="ved", lifespan=server.lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Counted, metrics=server.metrics)
    app.state.server = server

    def answered(read: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def route(request: Request) -> Response:
            try:
                return await read(request)
            except VedError as error:
                raise HTTPException(422, str(error)) from None

        return route

    for path, read, text in (
        ("/read", server.read, "Read the text out of images."),
        ("/stream", server.stream, "Read one image, its text sent as it comes (server-sent events)."),
    ):
        app.add_api_route(path, answered(read), methods=["POST"], summary=text, openapi_extra=BODY)

    @app.get("/", summary="The model, its decoding options, and the server's limits.")
    async def about_it() -> dict[str, Any]:
        limits = {name: getattr(server.settings, name) for name in LIMITS}
        return {**about, "options": sorted(OPTIONS), "limits": limits, "streams": engine.streams}

    @app.get("/health", summary="200 while requests are worked on, 500 where the server should be started anew.")
    async def health() -> Response:
        return JSONResponse({"alive": server.alive}, 200 if server.alive else 500)

    @app.get("/ready", summary="200 as soon as everything is compiled, 503 before.")
    async def ready() -> Response:
        return JSONResponse({"ready": server.ready}, 200 if server.ready else 503)

    @app.get("/metrics", summary="Numbers for Prometheus.")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if request.method == "POST" and error.status_code in (413, 415, 429, 503):
            await drain(request, server.settings)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": INTERNAL}, 500)

    return app


_FILE = {"type": "string", "format": "binary"}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _FILE},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "array", "items": _FILE}}}
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "byte"}},
                        "options": {"type": "object"},
                    },
                }
            },
        },
    }
}
