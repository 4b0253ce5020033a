"""Documents: given as JSON or files, learned by whoever owns their partition, listed, and forgotten.

A document is accepted once Kafka has it. What became of it is read from Elasticsearch, by any worker. It belongs to who
gave it: that user, operators and admins may replace or forget it, and its readers may see it. That an id is taken,
whoever wants to give a document under it is told.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import randbits
from typing import Any, Final

import msgspec
from aiohttp import BodyPartReader, web

from domain.errors import SinkUnavailable
from domain.files import media_type_in, media_type_of
from domain.ids import uuid7
from domain.knowledge import DocumentStatus, Reader
from streams.learning import status_of
from streams.records import Document, document_key, encode
from web.auth import who
from web.bodies import BODY_SECONDS, checked_metadata, decoded, give, is_json, read_body, too_large
from web.errors import ApiError, bad_input, not_found
from web.keys import Identity
from web.shapes import DocumentList, DocumentView, NewDocument, rfc3339
from web.site import SITE, Site

LIMIT: Final = 50
MAX_LIMIT: Final = 200
MAX_FILES: Final = 20
FILES_BYTES_FACTOR: Final = 2
MAX_READERS: Final = 1000
MAX_FIELD_BYTES: Final = 64 << 10
MAX_TITLE: Final = 300
MAX_URL: Final = 2000
ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@<>/+ -]{0,255}")
URL_START: Final = re.compile(r"https?://\S+$")
ENVELOPE_BYTES: Final = 4096
SHOWN_SECONDS: Final = 1.5
TOLD_SECONDS: Final = 5.0
"""How long a document that was taken waits until every worker can tell of it. This one can at once."""

MAY_ANY: Final = frozenset({"operator", "admin"})


@dataclass
class Given:
    """What a multipart body has."""

    files: list[tuple[str, str, bytes]] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


async def create(request: web.Request) -> web.StreamResponse:
    """Take a document, or several files."""
    site = request.app[SITE]
    if site.chat.settings.retrieval == "off":
        raise ApiError(409, "retrieval_off", "Documents are switched off here (HEADRACE_RETRIEVAL=off).")
    if request.content_type == "multipart/form-data":
        given = await _multipart(request)
        known = await _replaced(request, given.fields.get("id"))
        documents = _of_files(request, given)
    else:
        new = await _json_body(request)
        known = await _replaced(request, new.id)
        documents = [_of_json(request, new)]
    if known is not None:  # it stays whose it is, whoever renews it
        documents = [msgspec.structs.replace(document, user=known.user) for document in documents]
    views = await _publish(site, documents, known)
    if len(views) == 1:
        return give(views[0], status=202)
    return give(DocumentList(data=views), status=202)


async def list_all(request: web.Request) -> web.StreamResponse:
    """List the documents that somebody may read, the newest first."""
    site, reader = request.app[SITE], _reader(request)
    limit = _limit(request)
    found = await site.chat.services.documents.of(reader, limit=limit + 1, after=request.query.get("after", ""))
    return give(DocumentList(data=[_view(each) for each in found[:limit]], has_more=len(found) > limit))


async def read(request: web.Request) -> web.StreamResponse:
    """Return what became of a document."""
    return give(_view(await _known(request)))


async def forget(request: web.Request) -> web.StreamResponse:
    """Forget a document: answered once Kafka has that, and soon no search finds a passage of it."""
    site, identity = request.app[SITE], who(request)
    known = await _known(request, changes=True)
    if not _may_change(identity, known):
        message = f"You have given no document {known.document_id[:64]!r}. Who has may delete it, and operators."
        raise ApiError(404, "not_found", message)
    key = document_key(known.tenant, known.document_id)
    await site.chat.publish(site.chat.topics_of.documents, key, None, at_ms=site.now_ms())
    with suppress(TimeoutError, SinkUnavailable):
        async with asyncio.timeout(SHOWN_SECONDS):
            while await site.chat.services.documents.read(known.tenant, known.document_id) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)  # another worker forgets it
            return web.Response(status=204)
    return web.Response(status=202)


# -- what clients send


async def _json_body(request: web.Request) -> NewDocument:
    # A text in JSON may take twice its size: quotes and line breaks are escaped.
    body = await read_body(request, 2 * request.app[SITE].chat.settings.document_bytes, "HEADRACE_DOCUMENT_BYTES")
    if not is_json(request.content_type):
        message = (
            "A document is sent as JSON (Content-Type: application/json) or as files (multipart/form-data), not as"
            f" {request.content_type[:100]!r}."
        )
        raise ApiError(415, "unsupported_media_type", message)
    return decoded(body, NewDocument)


def _of_json(request: web.Request, new: NewDocument) -> Document:
    site = request.app[SITE]
    if not new.text.strip():
        raise bad_input("text", "text is empty: there is nothing to learn.")
    if len(new.text.encode()) > site.chat.settings.document_bytes:
        raise too_large(site.chat.settings.document_bytes, "HEADRACE_DOCUMENT_BYTES")
    return _document(
        request,
        document_id=new.id,
        title=new.title,
        url=new.url or "",
        readers=new.readers or [],
        metadata=new.metadata or {},
        text=new.text,
    )


def _of_files(request: web.Request, given: Given) -> list[Document]:
    if not given.files:
        raise bad_input("file", "There is no file in the body. Send it as the field `file`.", "missing_file")
    if len(given.files) > 1 and (given.fields.get("id") or given.fields.get("title")):
        raise bad_input("id", "id and title are for one file. Send several files without, or one by one.")
    return [
        _document(
            request,
            document_id=given.fields.get("id") or None,
            title=given.fields.get("title", ""),
            url=given.fields.get("url", ""),
            readers=[each.strip() for each in given.fields.get("readers", "").split(",") if each.strip()],
            metadata=_object(given.fields.get("metadata", "")),
            name=name,
            file=data,
            media_type=media_type,
        )
        for name, media_type, data in given.files
    ]


def _object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_input("metadata", f"metadata must be a JSON object: {error}.") from error


def _document(
    request: web.Request,
    *,
    document_id: str | None,
    title: str,
    url: str,
    readers: list[str],
    metadata: dict[str, Any],
    text: str = "",
    name: str = "",
    file: bytes = b"",
    media_type: str = "text/markdown",
) -> Document:
    site, identity = request.app[SITE], who(request)
    now = site.now_ms()
    if len(title) > MAX_TITLE:
        raise bad_input("title", f"title may have at most {MAX_TITLE} characters.")
    if url and (len(url) > MAX_URL or not URL_START.match(url)):
        raise bad_input("url", f"url must begin with http:// or https:// and have at most {MAX_URL} characters.")
    if len(readers) > MAX_READERS or any(not reader or len(reader) > 200 for reader in readers):
        raise bad_input("readers", f"readers may be at most {MAX_READERS} names of users.")
    return Document(
        document_id=document_id or uuid7(now, 0, randbits(62)),
        tenant=identity.tenant,
        user=identity.user,
        title=title,
        name=name,
        text=text,
        file=file,
        media_type=media_type,
        url=url,
        readers=readers,
        metadata=checked_metadata(metadata),
        at=now,
    )


async def _multipart(request: web.Request) -> Given:
    """Return the files and fields of a body. Raises `ApiError`: 400, 408, 413, 415."""
    given = Given()
    try:
        async with asyncio.timeout(BODY_SECONDS * 2):
            async for part in _parts(request):
                await _take_part(request, part, given)
    except TimeoutError as error:
        message = "The body did not come in time."
        raise ApiError(408, "body_too_slow", message, headers={"Connection": "close"}) from error
    except (ValueError, AssertionError) as error:
        message = f"The body is no multipart/form-data that can be read: {error}."
        raise bad_input(None, message, "invalid_body") from error
    return given


async def _parts(request: web.Request) -> AsyncIterator[BodyPartReader]:
    reader = await request.multipart()
    while (part := await reader.next()) is not None:
        if not isinstance(part, BodyPartReader):
            raise bad_input(None, "A part of the body has parts of its own. Send files as plain parts.", "invalid_body")
        yield part


async def _take_part(request: web.Request, part: BodyPartReader, given: Given) -> None:
    site = request.app[SITE]
    if part.filename is None:
        text = await _read(part, MAX_FIELD_BYTES, part.name or "a field")
        given.fields[part.name or ""] = text.decode(errors="replace")
        return
    if len(given.files) == MAX_FILES:
        raise bad_input("file", f"At most {MAX_FILES} files can be sent at once.")
    name = part.filename.replace("\\", "/").rpartition("/")[2][:MAX_TITLE] or "file"
    media_type = media_type_of(name, part.headers.get("Content-Type", ""))
    if media_type is None:
        raise _unsupported(name)
    room = FILES_BYTES_FACTOR * site.chat.settings.document_bytes - sum(len(data) for _, _, data in given.files)
    data = await _read(part, min(site.chat.settings.document_bytes, room), name)
    if not data:
        raise bad_input("file", f"{name} is empty.", "empty_file")
    if (media_type := media_type_in(data, media_type)) is None:
        raise _unsupported(name)
    given.files.append((name, media_type, data))


def _unsupported(name: str) -> ApiError:
    message = f"{name} is no file that can be read. PDF, DOCX, HTML, Markdown and text can: save it as one of these."
    return ApiError(415, "unsupported_file", message, param="file", headers={"Connection": "close"})


async def _read(part: BodyPartReader, limit: int, name: str) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(1 << 16):
        data += chunk
        if len(data) > limit:
            message = (
                f"{name} is too large: HEADRACE_DOCUMENT_BYTES is the most of one file, and {FILES_BYTES_FACTOR} times"
                " that of all files that are sent at once. Divide it, or send them one by one."
            )
            raise ApiError(413, "body_too_large", message, param="file", headers={"Connection": "close"})
    return bytes(data)


# -- what becomes of it


async def _publish(site: Site, documents: Sequence[Document], known: DocumentStatus | None) -> list[DocumentView]:
    """Write documents to Kafka in their order, and say of all at once that they are queued, if that can be said now."""
    topic = site.chat.topics_of.documents
    for document in documents:
        # A text of quotes and line breaks only takes twice its size as JSON, and one of control characters six times.
        # To encode 8 MB takes 10 ms, and what is published is encoded once more.
        if 6 * len(document.text) > topic.record_bytes:
            size = len(await asyncio.to_thread(encode, document))
            if size > topic.record_bytes - ENVELOPE_BYTES:
                raise too_large(site.chat.settings.document_bytes, "HEADRACE_DOCUMENT_BYTES")
    queued: list[DocumentStatus] = []
    try:
        for document in documents:
            key = document_key(document.tenant, document.document_id)
            await site.chat.publish(topic, key, document, at_ms=document.at)
            queued.append(status_of(document, document.at, known))
    finally:  # of those that Kafka has, also where it does not take the next one
        with suppress(SinkUnavailable, TimeoutError):
            async with asyncio.timeout(TOLD_SECONDS):
                await site.chat.services.documents.write(
                    *((status, status.updated_at, False) for status in queued), shown=False
                )
    return [_view(status) for status in queued]


async def _replaced(request: web.Request, document_id: str | None) -> DocumentStatus | None:
    """Return the document that a new one of this id replaces.

    Raises `ApiError`: 400 for what can be no id, 409 where another user's document has it.
    """
    if not document_id:
        return None
    if not ID.fullmatch(document_id):
        message = "id may have up to 256 letters, digits, spaces and . _ : @ < > / + -, a letter or digit first."
        raise bad_input("id", message)
    identity = who(request)
    known = await request.app[SITE].chat.services.documents.read(identity.tenant, document_id)
    if known is not None and not _may_change(identity, known):
        message = f"Another user has given a document with the id {document_id[:64]!r}. Choose another id."
        raise ApiError(409, "document_id_taken", message, param="id")
    return known


def _may_change(identity: Identity, known: DocumentStatus) -> bool:
    return identity.user == known.user or bool(MAY_ANY & set(identity.roles))


async def _known(request: web.Request, *, changes: bool = False) -> DocumentStatus:
    """Return the status of the document in a request's path; raises `ApiError` 404.

    ``changes``: for who may change it, besides those who may read it.
    """
    document_id = request.match_info["document_id"]
    identity, reader = who(request), _reader(request)
    known = await request.app[SITE].chat.services.documents.read(reader.tenant, document_id)
    if known is not None and (known.may_be_read_by(reader) or (changes and _may_change(identity, known))):
        return known
    raise not_found("document", document_id)


def _reader(request: web.Request) -> Reader:
    identity = who(request)
    return Reader(identity.tenant, identity.user)


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(LIMIT))
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise bad_input("limit", f"limit must be a number from 1 to {MAX_LIMIT}.")
    return int(text)


def _view(status: DocumentStatus) -> DocumentView:
    return DocumentView(
        document_id=status.document_id,
        title=status.title,
        status=status.status,
        error=status.error or None,
        url=status.url or None,
        passages=status.passages,
        readers=status.readers,
        metadata=status.metadata,
        created_at=rfc3339(status.created_at),
        updated_at=rfc3339(status.updated_at),
    )
