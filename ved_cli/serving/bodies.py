"""What a request brings: images and decoding options, as raw bytes, a form or JSON, and never more than is allowed."""

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from ved_cli.decoding import OUTPUTS, value
from ved_cli.serving.settings import Settings
from ved_core.generation.config import GenerationConfig

OPTIONS = frozenset({*GenerationConfig.field_names(), "prompt", "seed"} - set(OUTPUTS))
"""Names of what a request may ask for."""
GONE = 499
"""Status of a client that did not wait for its answer: nobody sees it but the metrics."""
MOST_FIELDS = 64
"""Of a form, beside its images."""
COMPLETE = "ved.complete"
"""Key of a request's scope: whether its body has been read to its end."""
KINDS = "an image (image/*), multipart/form-data with files, or application/json"


class Body(NamedTuple):
    """Images, each with its name, and options as they were given."""

    images: list[tuple[str, bytes]]
    options: dict[str, Any]


async def body(request: Request, settings: Settings) -> Body:
    """Read a request. Raises HTTPException: 408 where it takes too long, 413 where it is too large, 415 for a type that
    is not known, 422 for what cannot be understood."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _READERS and not kind.startswith("image/"):
        raise HTTPException(415, f"content-type {kind or 'not given'!r}: send {KINDS}")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > settings.max_bytes:
        raise _too_large(settings)
    try:
        async with asyncio.timeout(settings.upload_seconds):
            found = await _READERS.get(kind, _raw)(_limited(request, settings), settings)
    except TimeoutError:
        raise HTTPException(408, f"the request took more than {settings.upload_seconds:g} s to arrive") from None
    except ClientDisconnect:
        raise HTTPException(GONE, "the client has gone") from None
    images, options = found
    for name, text in request.query_params.multi_items():
        _set(options, name, value(text))
    if not images:
        raise HTTPException(422, f"no image: send {KINDS}")
    if len(images) > settings.max_images:
        raise HTTPException(413, f"{len(images)} images are more than {settings.max_images}: send several requests")
    return Body(images, options)


async def drain(request: Request, settings: Settings) -> None:
    """Read what is still to come and forget it: a client that is sending would not see the answer otherwise. Not
    beyond what is allowed, and not where it has yet to be asked for."""
    if request.scope.get(COMPLETE) or request.headers.get("expect", "").lower() == "100-continue":
        return
    left = settings.max_bytes
    try:
        async with asyncio.timeout(settings.upload_seconds):
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _too_large(settings: Settings) -> HTTPException:
    return HTTPException(413, f"the body is larger than {settings.max_bytes:,} bytes: send smaller images, or fewer")


def _limited(request: Request, settings: Settings) -> Request:
    """The same request, whose body ends in an error where it is too large."""
    read = 0

    async def receive() -> Message:
        nonlocal read
        message = await request.receive()
        read += len(message.get("body", b""))
        request.scope[COMPLETE] = not message.get("more_body", False)
        if read > settings.max_bytes:
            raise _too_large(settings)
        return message

    return Request(request.scope, receive)


async def _raw(request: Request, settings: Settings) -> Body:
    content = await request.body()
    return Body([("image", content)] if content else [], {})


async def _form(request: Request, settings: Settings) -> Body:
    images: list[tuple[str, bytes]] = []
    options: dict[str, Any] = {}
    limits = {"max_files": settings.max_images, "max_fields": MOST_FIELDS}
    try:
        async with request.form(**limits) as form:
            for name, part in form.multi_items():
                if isinstance(part, UploadFile):
                    images.append((part.filename or name, await part.read()))
                else:
                    _set(options, name, value(part))
    except HTTPException as error:
        if error.status_code != 400:
            raise
        status = 413 if str(error.detail).startswith("Too many") else 422
        raise HTTPException(status, f"form: {error.detail}") from None
    return Body(images, options)


async def _json(request: Request, settings: Settings) -> Body:
    return await run_in_threadpool(_parsed, await request.body())


def _parsed(content: bytes) -> Body:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"JSON: {error}") from None
    texts = found.get("images") if isinstance(found, Mapping) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise HTTPException(422, 'JSON: send {"images": ["base64 ..."], "options": {...}}')
    given = found.get("options", {})
    unknown = found.keys() - {"images", "options"}
    if unknown or not isinstance(given, Mapping):
        raise HTTPException(422, f"JSON: {sorted(unknown) or 'options'}: only images and an object of options go")
    options: dict[str, Any] = {}
    for name, wanted in given.items():
        _set(options, name, wanted)
    return Body([(str(place), _decoded(place, text)) for place, text in enumerate(texts)], options)


def _decoded(place: int, text: str) -> bytes:
    """Base64, also as a data URL."""
    data = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, f"images[{place}] is not base64: {error}") from None


def _set(options: dict[str, Any], name: str, wanted: Any) -> None:
    if name not in OPTIONS:
        raise HTTPException(422, f"there is no option {name!r}; GET / lists what a request may ask for")
    if name in options:
        raise HTTPException(422, f"{name} is given twice")
    options[name] = wanted


_READERS = {"multipart/form-data": _form, "application/json": _json, "application/octet-stream": _raw}
"""Readers by content type; image/* is raw too."""
