"""Every route of a worker, in one table: what it takes, what it gives, and the handler that does it."""

import msgspec
from aiohttp import web

from streams.app import app
from tables import conversations as conversations_table
from tables import replays as replays_table
from web import (
    ask,
    conversations,
    docs,
    documents,
    events,
    feedback,
    health,
    me,
    memories,
    models,
    openai_chat,
    openapi,
    page,
    search,
    socket,
    turns,
)
from web.auth import guard_dev, identified
from web.bodies import go_on
from web.errors import answer_errors
from web.openai_shapes import ChatCompletion, ChatCompletionRequest, ModelList, ModelObject
from web.openapi import OPENAPI, Parameter, Route
from web.ports import Chat, Conversations, Replays
from web.shapes import (
    AcceptedTurn,
    ChangedConversation,
    ChangedMemory,
    ConversationList,
    ConversationView,
    DocumentList,
    DocumentView,
    EditedTurn,
    EmbeddingList,
    FeedbackView,
    Health,
    Me,
    MemoryList,
    MemorySwitch,
    MemoryView,
    NewConversation,
    NewDocument,
    NewFeedback,
    NewMemory,
    NewTurn,
    RegeneratedTurn,
    SearchResults,
    StoppedTurn,
    TurnView,
    WantedEmbeddings,
    WantedSearch,
    WholeConversation,
)
from web.site import SITE, Site
from web.tracing import on_headers, trace

KEY = Parameter(
    name="Idempotency-Key",
    where="header",
    does="Makes a repeated request harmless, on any worker and after any crash. For a day the same key and body, on the"
    " same route, give the same turn, also one that failed; the same conversation for as long as it is there. With"
    " another body 409 `idempotency_key_reused`. Printable characters.",
    schema={"type": "string", "maxLength": 255},
)
LAST_EVENT_ID = Parameter(
    name="Last-Event-ID",
    where="header",
    does="The last event that the reader has. Counts before `starting_after`.",
    schema={"type": "integer", "minimum": -1},
)
STARTING_AFTER = Parameter(
    name="starting_after", does="Send only events with a higher number.", schema={"type": "integer", "minimum": -1}
)
LIMIT = Parameter(
    name="limit",
    does="How many to return.",
    schema={"type": "integer", "minimum": 1, "maximum": conversations.MAX_LIMIT, "default": conversations.LIMIT},
)
AFTER = Parameter(
    name="after",
    does="Return those that follow: the `next` of a page, or the id of a conversation.",
    schema={"type": "string"},
)
TURN_LIMIT = Parameter(
    name="limit",
    does="How many turns to return. Without it, the latest hundred, or more where they are at hand.",
    schema={"type": "integer", "minimum": 1, "maximum": conversations.MAX_LIMIT},
)
BEFORE = Parameter(name="before", does="Return turns that were asked before this one.", schema={"type": "string"})
TURNS = Parameter(
    name="turns", does="`false` leaves the turns out.", schema={"type": "string", "enum": ["true", "false"]}
)

_metrics = health.Metrics()

ROUTES: tuple[Route, ...] = (
    Route(
        group="Conversations",
        method="POST",
        path="/v1/conversations",
        handler=conversations.create,
        does="Begin a conversation.",
        takes=NewConversation,
        gives=ConversationView,
        status=201,
        parameters=(KEY,),
    ),
    Route(
        group="Conversations",
        method="GET",
        path="/v1/conversations",
        handler=conversations.list_all,
        does="List your conversations, the latest active first.",
        more="A conversation that becomes active while you read page by page moves to the front: read the first page"
        " again to see it. Older conversations come from Postgres. While that does not answer, `older_unavailable` is"
        " true and the list has what the workers hold.",
        gives=ConversationList,
        parameters=(LIMIT, AFTER),
    ),
    Route(
        group="Conversations",
        method="GET",
        path="/v1/conversations/{conversation_id}",
        handler=conversations.read,
        does="Read a conversation with its latest turns, also those in work.",
        more="Turns are in the order asked. While `has_more` is true, the first turn's id as `before` gives those"
        " that come before it. Older turns come from Postgres. While that does not answer, `older_unavailable` is"
        " true where there may be some, and the latest turns are there all the same.",
        gives=WholeConversation,
        parameters=(TURNS, TURN_LIMIT, BEFORE),
    ),
    Route(
        group="Conversations",
        method="PATCH",
        path="/v1/conversations/{conversation_id}",
        handler=conversations.change,
        does="Change its title or metadata.",
        takes=ChangedConversation,
        gives=ConversationView,
    ),
    Route(
        group="Conversations",
        method="DELETE",
        path="/v1/conversations/{conversation_id}",
        handler=conversations.erase,
        does="Erase it.",
        status=204,
    ),
    Route(
        group="Turns",
        method="POST",
        path="/v1/conversations/{conversation_id}/turns",
        handler=ask.ask,
        does="Ask. Once this is answered, the question is in Kafka and will be answered. With"
        " `Accept: text/event-stream`, 200 and the events themselves.",
        takes=NewTurn,
        gives=AcceptedTurn,
        status=202,
        streams=True,
        parameters=(KEY,),
    ),
    Route(
        group="Turns",
        method="GET",
        path="/v1/turns/{turn_id}",
        handler=turns.read,
        does="Read a turn, with its answer so far.",
        gives=TurnView,
    ),
    Route(
        group="Turns",
        method="GET",
        path="/v1/turns/{turn_id}/events",
        handler=events.events,
        does="Follow a turn, live or long after its end.",
        more="Server-sent events. `id` is the event's number within the turn, from 0, without gaps and the same"
        " for every reader; `data` is one line of JSON."
        " `turn.started` `{turn_id, conversation_id, model}`, `turn.citations`"
        " `[{n, document_id, title, url, text}]` (what `[n]` in the answer means), `token` `{text}`,"
        " `turn.tool_calls` `{tool_calls}`; then one end: `turn.completed` and `turn.stopped`"
        " `{outcome, model, finish, usage, timings, retrieval, cache}`, `turn.failed` `{outcome, error}`,"
        " `turn.handed_over` `{outcome, reason}`. Comments come in silence, and `retry: 200` when the worker shuts"
        " down: come back with `Last-Event-ID`. 204 where the reader has everything, 410 where Kafka has deleted the"
        " events.",
        streams=True,
        parameters=(LAST_EVENT_ID, STARTING_AFTER),
    ),
    Route(
        group="Turns",
        method="POST",
        path="/v1/turns/{turn_id}/stop",
        handler=turns.stop,
        does="Stop a turn. The text so far is kept.",
        gives=StoppedTurn,
        status=202,
    ),
    Route(
        group="Turns",
        method="POST",
        path="/v1/turns/{turn_id}/regenerate",
        handler=turns.regenerate,
        does="Have the same question answered again, beside the first answer.",
        takes=RegeneratedTurn,
        gives=AcceptedTurn,
        status=202,
        streams=True,
        parameters=(KEY,),
    ),
    Route(
        group="Turns",
        method="POST",
        path="/v1/turns/{turn_id}/edit",
        handler=turns.edit,
        does="Ask otherwise, beside the first question.",
        takes=EditedTurn,
        gives=AcceptedTurn,
        status=202,
        streams=True,
        parameters=(KEY,),
    ),
    Route(
        group="Turns",
        method="POST",
        path="/v1/turns/{turn_id}/feedback",
        handler=feedback.rate,
        does="Say what a turn was like, once it has ended. Once this is answered, it is in Kafka.",
        more="What you say later takes its place, also without a comment. A turn and its conversation show it when the"
        " archive's window closes.",
        takes=NewFeedback,
        gives=FeedbackView,
        status=202,
    ),
    Route(
        group="Turns",
        method="GET",
        path="/v1/ws",
        handler=socket.socket,
        does="The same commands and events over a WebSocket.",
        more="Messages are JSON objects. A client sends `ask` `{conversation_id?, idempotency_key?, …}` with the fields"
        " of the route's body (without a conversation, one is begun), `regenerate`, `edit` and `feedback`"
        " `{turn_id, …}`, `stop` `{turn_id}`, `events` `{turn_id, starting_after?}` and `ping`, each with its name as"
        " `type` and, if it likes, a `ref` of its own, which the answer carries too. `accepted` has what the route"
        " answers; after `ask`, `regenerate`, `edit` and `events` the turn's events follow: the event's name as `type`,"
        " its number as `id`, `turn_id`, and the fields of its data. `error` has `status`, the error object and, where"
        " it is a matter of time, `retry_after`. At 1012 connect again, and send `events` with the last `id` as"
        " `starting_after`.",
        status=101,
    ),
    Route(
        group="OpenAI",
        method="POST",
        path="/v1/chat/completions",
        handler=openai_chat.complete,
        does="OpenAI's chat completions, streamed or whole, by the same path as every turn.",
        takes=ChatCompletionRequest,
        gives=ChatCompletion,
        streams=True,
        parameters=(KEY,),
    ),
    Route(
        group="OpenAI",
        method="GET",
        path="/v1/models",
        handler=models.list_all,
        does="List the models.",
        gives=ModelList,
    ),
    Route(
        group="OpenAI",
        method="GET",
        path="/v1/models/{model_id:.+}",
        handler=models.read,
        does="Read one model.",
        gives=ModelObject,
    ),
    Route(
        group="OpenAI",
        method="POST",
        path="/v1/embeddings",
        handler=search.embed,
        does="Turn texts into vectors, with the model that passages are found by.",
        takes=WantedEmbeddings,
        gives=EmbeddingList,
    ),
    Route(
        group="Documents",
        method="POST",
        path="/v1/documents",
        handler=documents.create,
        does="Give a document to learn. Once this is answered it is in Kafka and will be learned.",
        more="As JSON, or as files in `multipart/form-data`: the field `file` once or several times (PDF, DOCX, HTML,"
        " Markdown, text), and, for one file, `id` and `title`; `url`, `readers` (names of users, with commas between),"
        " `metadata` (JSON). Several files are answered with a list. The same `id` again replaces the document, and of"
        " its passages those that changed. `readers`: who may find it besides you; without, everyone in your tenant.",
        takes=NewDocument,
        gives=DocumentView,
        status=202,
    ),
    Route(
        group="Documents",
        method="GET",
        path="/v1/documents",
        handler=documents.list_all,
        does="List the documents that you may read, the newest first.",
        gives=DocumentList,
        parameters=(LIMIT, AFTER),
    ),
    Route(
        group="Documents",
        method="GET",
        path="/v1/documents/{document_id:.+}",
        handler=documents.read,
        does="Read what became of a document: queued, learned, or failed and why.",
        gives=DocumentView,
    ),
    Route(
        group="Documents",
        method="DELETE",
        path="/v1/documents/{document_id:.+}",
        handler=documents.forget,
        does="Forget a document with all its passages. 204 when they are gone, 202 when they will be soon.",
        status=204,
    ),
    Route(
        group="Documents",
        method="POST",
        path="/v1/search",
        handler=search.search,
        does="Find passages, as an answer would.",
        more="With `messages`, the conversation so far, the query is understood from it, as in a turn. 503 while"
        " Elasticsearch is away.",
        takes=WantedSearch,
        gives=SearchResults,
    ),
    Route(group="You", method="GET", path="/v1/me", handler=me.read, does="Who you are here.", gives=Me),
    Route(
        group="You",
        method="GET",
        path="/v1/me/memories",
        handler=memories.list_all,
        does="List what the assistant remembers of you.",
        gives=MemoryList,
    ),
    Route(
        group="You",
        method="POST",
        path="/v1/me/memories",
        handler=memories.add,
        does="Have it remember something.",
        more="201 once every worker knows it. 202 where Kafka has taken it and it will show in a moment, as with all"
        " changes. 503 while Elasticsearch is away, and nothing is changed.",
        takes=NewMemory,
        gives=MemoryView,
        status=201,
    ),
    Route(
        group="You",
        method="PATCH",
        path="/v1/me/memories",
        handler=memories.switch,
        does="Switch memory on or off for yourself. What is there stays, and is not used while it is off.",
        takes=MemorySwitch,
        gives=MemoryList,
    ),
    Route(
        group="You",
        method="DELETE",
        path="/v1/me/memories",
        handler=memories.erase_all,
        does="Erase all that it remembers of you.",
        status=204,
    ),
    Route(
        group="You",
        method="PATCH",
        path="/v1/me/memories/{memory_id}",
        handler=memories.change,
        does="Change what it remembers.",
        takes=ChangedMemory,
        gives=MemoryView,
    ),
    Route(
        group="You",
        method="DELETE",
        path="/v1/me/memories/{memory_id}",
        handler=memories.erase,
        does="Erase something that it remembers, with what that had taken the place of.",
        status=204,
    ),
    Route(
        group="Worker",
        method="GET",
        path="/healthz",
        handler=health.healthz,
        does="200 while the worker is alive.",
        gives=Health,
        is_open=True,
    ),
    Route(
        group="Worker",
        method="GET",
        path="/readyz",
        handler=health.readyz,
        does="200 when the worker takes questions, else 503 with what it waits for.",
        gives=Health,
        is_open=True,
    ),
    Route(
        group="Worker",
        method="GET",
        path="/metrics",
        handler=_metrics.read,
        does="Prometheus metrics. They hold nothing about a person.",
        gives_text="text/plain",
        is_open=True,
    ),
    Route(
        group="Worker",
        method="GET",
        path="/openapi.json",
        handler=openapi.openapi,
        does="This contract, for programs.",
        gives_text="application/json",
        is_open=True,
    ),
    Route(
        group="Worker",
        method="GET",
        path="/docs",
        handler=docs.docs,
        does="This contract, for people.",
        gives_text="text/html",
        is_open=True,
    ),
    Route(
        group="Page",
        method="GET",
        path="/",
        handler=page.index,
        does="The chat.",
        gives_text="text/html",
        is_open=True,
    ),
    Route(
        group="Page",
        method="GET",
        path="/static/{path:.+}",
        handler=page.static,
        does="The files of the chat.",
        gives_text="*/*",
        is_open=True,
    ),
)


def register(application: web.Application) -> None:
    """Add the routes of this worker to its web application."""
    set_up(application, app, conversations_table, replays_table)


def set_up(application: web.Application, chat: Chat, conversations: Conversations, replays: Replays) -> None:
    """Add all routes, with what they share, to an application."""
    site = Site(chat, conversations, replays)
    application[SITE] = site
    contract = openapi.document(ROUTES)
    application[OPENAPI] = msgspec.json.encode(contract)
    application[docs.DOCS] = docs.page(contract)
    # The first is the outermost: also a request that is kept out gets its id and the error object.
    application.middlewares.extend((trace, answer_errors, guard_dev))
    application.on_response_prepare.append(on_headers)
    application.on_shutdown.append(site.shut_down)
    application.on_cleanup.append(site.close)
    for route in ROUTES:
        handler = route.handler if route.is_open else identified(route.handler)
        if route.method == "GET" and not route.streams:
            application.router.add_get(route.path, handler, expect_handler=go_on)  # answers HEAD too
        else:
            application.router.add_route(route.method, route.path, handler, expect_handler=go_on)


app.on_web(register)
