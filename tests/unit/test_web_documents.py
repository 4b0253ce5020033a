"""Documents are given, listed, read, forgotten and found by those who may; who sends bad ones hears what is wrong."""

import json
from base64 import b64decode
from struct import unpack
from typing import Any

import aiohttp
import pytest

from domain.knowledge import DocumentStatus, Found, Passage, Reader
from streams.records import Document
from tests.support.fakes import ALICE, BOB
from tests.support.web_client import Web, serving

PATH = "/v1/documents"


async def give(web: Web, body: dict[str, Any] | None = None, *, key: str = ALICE, status: int = 202) -> dict[str, Any]:
    response = await web.call("POST", PATH, {"title": "Manual", "text": "# Kafka\nA log."} | (body or {}), key=key)
    assert response.status == status, await response.text()
    answer: dict[str, Any] = await response.json()
    return answer


async def upload(web: Web, *files: tuple[str, bytes], status: int = 202, **fields: str) -> dict[str, Any]:
    form = aiohttp.FormData(fields)
    for name, data in files:
        form.add_field("file", data, filename=name)
    response = await web.call("POST", PATH, data=form)
    assert response.status == status, await response.text()
    answer: dict[str, Any] = await response.json()
    return answer


def published(web: Web) -> list[Document]:
    return [record for record in web.worker.kafka.published if isinstance(record, Document)]


async def test_a_document_is_queued_once_kafka_has_it() -> None:
    async with serving() as web:
        given = await give(web, {"url": "https://example.invalid/m", "metadata": {"team": "data"}})

        (record,) = published(web)
        assert (record.tenant, record.user, record.text) == ("acme", "alice", "# Kafka\nA log.")
        assert (given["status"], given["document_id"], given["passages"]) == ("queued", record.document_id, 0)
        found = await (await web.call("GET", f"{PATH}/{record.document_id}")).json()
        assert found == given
        listed = await (await web.call("GET", PATH)).json()
        assert listed == {"object": "list", "data": [given], "has_more": False}


async def test_files_are_taken_as_they_are() -> None:
    async with serving() as web:
        one = await upload(web, ("guide.pdf", b"%PDF-1.7 \xff\x00"), title="Guide", id="guide", readers="bob, carol")
        many = await upload(web, ("a.md", b"# A"), ("b.html", b"<p>B"))

        assert (one["document_id"], one["title"], one["readers"]) == (
            "guide",
            "Guide",
            ["alice", "bob", "carol"],
        )
        assert len(many["data"]) == 2
        pdf, markdown, html = published(web)
        assert (pdf.file, pdf.media_type) == (b"%PDF-1.7 \xff\x00", "application/pdf")
        assert (markdown.media_type, markdown.name, html.media_type) == ("text/markdown", "a.md", "text/html")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"text": "  "}, 400, "text"),
        ({"id": "../x y\n"}, 400, "id"),
        ({"title": "t" * 301}, 400, "title"),
        ({"url": "javascript:alert(1)"}, 400, "url"),
        ({"readers": [""]}, 400, "readers"),
        ({"metadata": {str(number): 1 for number in range(17)}}, 400, "metadata"),
        ({"text": 3}, 400, "text"),
        ({"text": "x" * 3000}, 413, None),
    ],
)
async def test_a_bad_document_is_told_which_field_is_wrong(
    body: dict[str, Any], status: int, param: str | None
) -> None:
    async with serving(document_bytes=2048) as web:
        error = (await give(web, body, status=status))["error"]

        assert error["param"] == param
        assert published(web) == []


@pytest.mark.parametrize(
    ("name", "data", "status", "code"),
    [
        ("tool.exe", b"MZ", 415, "unsupported_file"),
        ("tool.txt", b"MZ\x00\x03", 415, "unsupported_file"),
        ("page.pdf", b"<html>", 415, "unsupported_file"),
        ("old.docx", b"\xd0\xcf\x11\xe0", 415, "unsupported_file"),
        ("empty.txt", b"", 400, "empty_file"),
        ("large.txt", b"x" * 3000, 413, "body_too_large"),
    ],
)
async def test_a_bad_file_is_refused_with_its_name(name: str, data: bytes, status: int, code: str) -> None:
    async with serving(document_bytes=2048) as web:
        error = (await upload(web, (name, data), status=status))["error"]

        assert (error["code"], error["param"], name in error["message"]) == (code, "file", True)
        assert published(web) == []


async def test_a_body_without_a_file_or_of_another_kind_is_refused() -> None:
    async with serving() as web:
        form = aiohttp.FormData({"title": "x"}, default_to_multipart=True)
        assert (await web.call("POST", PATH, data=form)).status == 400
        response = await web.call("POST", PATH, data=b"x", headers={"Content-Type": "text/plain"})
        assert response.status == 415


async def test_only_those_who_may_read_a_document_know_of_it() -> None:
    async with serving() as web:
        mine = await give(web, {"id": "mine", "readers": ["alice"]})
        await give(web, {"id": "ours"})

        assert [each["document_id"] for each in (await (await web.call("GET", PATH, key=BOB)).json())["data"]] == [
            "ours"
        ]
        assert (await web.call("GET", f"{PATH}/{mine['document_id']}", key=BOB)).status == 404
        assert (await web.call("DELETE", f"{PATH}/{mine['document_id']}", key=BOB)).status == 404
        assert (await web.call("GET", f"{PATH}/nothing")).status == 404


async def test_nobody_replaces_or_forgets_what_somebody_else_gave() -> None:
    async with serving() as web:
        await give(web, {"id": "ours"})

        assert (await give(web, {"id": "ours", "text": "other"}, key=BOB, status=409))["error"]["code"] == (
            "document_id_taken"
        )
        assert (await web.call("DELETE", f"{PATH}/ours", key=BOB)).status == 404
        await give(web, {"id": "ours", "text": "new"})
        assert [record.text for record in published(web)] == ["# Kafka\nA log.", "new"]


async def test_operators_and_admins_forget_and_replace_what_they_may_not_read() -> None:
    async with serving(auth="dev") as web:  # where everyone is an admin
        known = web.worker.services.documents.known
        known["dev", "private"] = DocumentStatus("private", "dev", "ann", readers=["ann"])
        known["other", "theirs"] = DocumentStatus("theirs", "other", "ann")

        assert (await web.call("GET", f"{PATH}/private", key=None)).status == 404
        response = await web.call("POST", PATH, {"id": "private", "title": "P", "text": "new"}, key=None)
        assert (response.status, published(web)[0].user) == (202, "ann")
        assert (await web.call("DELETE", f"{PATH}/private", key=None)).status == 204
        assert (await web.call("DELETE", f"{PATH}/theirs", key=None)).status == 404
        assert ("other", "theirs") in known


async def test_that_many_files_are_queued_is_told_at_once_and_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("web.documents.TOLD_SECONDS", 0.01)
    async with serving() as web:
        web.worker.services.documents.hangs = True

        many = await upload(web, ("a.md", b"# A"), ("b.md", b"# B"), ("c.md", b"# C"))

        ids = [record.document_id for record in published(web)]
        assert [record.name for record in published(web)] == ["a.md", "b.md", "c.md"]
        assert [each["document_id"] for each in many["data"]] == ids
        assert web.worker.services.documents.writes == [ids]


async def test_a_document_that_is_replaced_was_created_when_it_was() -> None:
    async with serving() as web:
        await give(web, {"id": "d"})
        web.worker.services.documents.known["acme", "d"] = DocumentStatus("d", "acme", "alice", created_at=1000)

        assert (await give(web, {"id": "d", "text": "new"}))["created_at"].startswith("1970-01-01T00:00:01")


async def test_many_files_at_once_have_a_limit_together() -> None:
    async with serving(document_bytes=2048) as web:
        files = [(f"{number}.txt", b"x" * 1500) for number in range(3)]

        assert (await upload(web, *files, status=413))["error"]["code"] == "body_too_large"
        assert published(web) == []


async def test_a_text_that_kafka_would_not_take_is_refused_before() -> None:
    async with serving(document_bytes=65_536) as web:
        assert (await give(web, {"text": "\x01" * 65_000}, status=413))["error"]["code"] == "body_too_large"


async def test_what_is_forgotten_is_gone_when_that_is_answered_or_will_be() -> None:
    async with serving() as web:
        await give(web, {"id": "a"})
        await give(web, {"id": "b"})

        assert (await web.call("DELETE", f"{PATH}/a")).status == 204
        web.worker.services.documents.keeps = True
        assert (await web.call("DELETE", f"{PATH}/b")).status == 202


async def test_the_list_goes_on_page_by_page() -> None:
    async with serving() as web:
        for number in range(5):
            web.worker.services.documents.known["acme", f"d{number}"] = DocumentStatus(
                f"d{number}", "acme", "alice", created_at=number, updated_at=number
            )

        first = await (await web.call("GET", f"{PATH}?limit=3")).json()
        rest = await (await web.call("GET", f"{PATH}?limit=3&after={first['data'][-1]['document_id']}")).json()

        assert [each["document_id"] for each in first["data"] + rest["data"]] == ["d4", "d3", "d2", "d1", "d0"]
        assert (first["has_more"], rest["has_more"]) == (True, False)
        assert (await web.call("GET", f"{PATH}?limit=0")).status == 400


async def test_without_elasticsearch_a_new_document_is_taken_and_an_old_one_not_replaced_blindly() -> None:
    async with serving() as web:
        web.worker.services.documents.down = True

        assert (await give(web))["status"] == "queued"
        await give(web, {"id": "perhaps-anothers"}, status=503)
        assert (await web.call("GET", PATH)).status == 503


async def test_where_documents_are_switched_off_none_is_taken() -> None:
    async with serving(retrieval="off") as web:
        assert (await give(web, status=409))["error"]["code"] == "retrieval_off"


# -- search


async def test_search_finds_for_who_asks_and_with_the_conversation() -> None:
    async with serving() as web:
        passage = Passage("d", "Manual", "Kafka", "A log.", "https://example.invalid/m")
        web.worker.services.retriever.found = [Found("p", passage, 1.23456789)]
        said = [{"role": "user", "content": "What is Kafka?"}, {"role": "assistant", "content": "A log."}]

        answer = await (await web.call("POST", "/v1/search", {"query": "And why?", "messages": said, "k": 5})).json()

        assert answer == {
            "object": "list",
            "has_more": False,
            "data": [
                {
                    "document_id": "d", "title": "Manual", "path": "Kafka", "text": "A log.", "score": 1.234568,
                    "url": "https://example.invalid/m",
                }
            ],
        }  # fmt: skip
        asked = [(Reader("acme", "alice"), [*said, {"role": "user", "content": "And why?"}])]
        assert web.worker.services.retriever.asked == asked
        # A client may also send the question as the last of the messages.
        await web.call("POST", "/v1/search", {"query": "And why?", "messages": asked[0][1]})
        assert web.worker.services.retriever.asked[1:] == asked


async def test_a_conversation_may_have_its_texts_in_parts_and_what_nobody_said() -> None:
    async with serving() as web:
        said = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "Kafka?"}, 3]},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": ["user"], "content": "x"},
            {},
        ]
        response = await web.call("POST", "/v1/search", {"query": "And why?", "messages": said})

        assert response.status == 200
        ((_, messages),) = web.worker.services.retriever.asked
        assert [message["content"] for message in messages] == ["What is Kafka?", "", "And why?"]


@pytest.mark.parametrize("body", [{"query": " "}, {"query": "x", "k": 0}, {"query": "x", "k": 51}, {}, {"query": 3}])
async def test_a_search_for_nothing_or_too_much_is_refused(body: dict[str, Any]) -> None:
    async with serving() as web:
        assert (await web.call("POST", "/v1/search", body)).status == 400


async def test_without_elasticsearch_a_search_says_when_to_come_back() -> None:
    async with serving() as web:
        web.worker.services.retriever.down = True
        response = await web.call("POST", "/v1/search", {"query": "x"})

        assert (response.status, response.headers["Retry-After"]) == (503, "2")


async def test_a_search_that_elasticsearch_does_not_answer_ends_in_time() -> None:
    async with serving(retrieval_seconds=0.01) as web:
        web.worker.services.retriever.hangs = True
        response = await web.call("POST", "/v1/search", {"query": "x"})

        assert (response.status, "0.01 s" in await response.text()) == (503, True)


async def test_where_documents_are_switched_off_nothing_is_searched() -> None:
    async with serving(retrieval="off") as web:
        response = await web.call("POST", "/v1/search", {"query": "x"})

        assert (response.status, (await response.json())["error"]["code"]) == (409, "retrieval_off")
        assert web.worker.services.retriever.asked == []


# -- embeddings


async def test_embeddings_come_in_openais_form() -> None:
    async with serving() as web:
        answer = await (await web.call("POST", "/v1/embeddings", {"input": ["ab", "abc"]})).json()
        packed = {"input": "ab", "encoding_format": "base64", "model": "all-MiniLM-L6-v2"}
        encoded = await (await web.call("POST", "/v1/embeddings", packed)).json()

        assert [each["embedding"] for each in answer["data"]] == [[2.0, 1.0], [3.0, 1.0]]
        assert unpack("<2f", b64decode(encoded["data"][0]["embedding"])) == (2.0, 1.0)
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
        assert json.dumps(answer)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": []}, 400),
        ({"input": ["x", " "]}, 400),
        ({"input": ["x"] * 257}, 400),
        ({"input": [1]}, 400),
        ({"input": "x", "dimensions": 64}, 400),
        ({"input": "x", "model": "other"}, 404),
    ],
)
async def test_embeddings_that_cannot_be_are_refused(body: dict[str, Any], status: int) -> None:
    async with serving() as web:
        assert (await web.call("POST", "/v1/embeddings", body)).status == status


async def test_a_model_that_is_being_loaded_says_when_to_come_back_for_vectors() -> None:
    async with serving() as web:
        web.worker.services.embedders.down = True
        response = await web.call("POST", "/v1/embeddings", {"input": "x"})

        assert (response.status, response.headers["Retry-After"]) == (503, "5")
