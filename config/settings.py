"""What an operator can set. Every variable is read here and nowhere else, and a wrong one stops the start.

Names are HEADRACE_ and the field's name in capitals, but for the five URLs and keys that other programs use
too. `docs/settings.md` is generated from this file (``make docs``).
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Final, Literal, NoReturn, Self, get_args

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]

Resume = Literal["auto", "prefill", "instruct"]
RESUME: Final[Mapping[str, Resume]] = {way: way for way in get_args(Resume)}


def _plain(name: str) -> AliasChoices:
    """Read this variable under its usual name, without our prefix."""
    return AliasChoices(name)


class Settings(BaseSettings):
    """All settings of a worker, read from the environment."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore", frozen=True)

    # -- whom we talk to
    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092",
        validation_alias=_plain("KAFKA_BOOTSTRAP_SERVERS"),
        description="Kafka brokers to start from, as host:port,host:port. Name two or more, so that a worker"
        " can start while one of them is down.",
    )
    elasticsearch_url: str = Field(
        "http://127.0.0.1:9200",
        validation_alias=_plain("ELASTICSEARCH_URL"),
        description="The Elasticsearch 8 server that holds passages and finished turns.",
    )
    database_url: SecretStr = Field(
        SecretStr("postgresql://127.0.0.1:5432/headrace"),
        validation_alias=_plain("DATABASE_URL"),
        description="The Postgres database for finished turns, as a URL that psycopg understands. While nobody answers"
        " there, a worker starts and answers all the same, and what it has to write waits in Kafka.",
    )
    openai_base_url: str = Field(
        "http://127.0.0.1:8080/v1",
        validation_alias=_plain("OPENAI_BASE_URL"),
        description="The model server: anything that speaks OpenAI's chat completions (vLLM, llama.cpp,"
        " Ollama, OpenAI itself). The path usually ends in /v1.",
    )
    openai_api_key: SecretStr = Field(
        SecretStr("none"),
        validation_alias=_plain("OPENAI_API_KEY"),
        description="The key for the model server. Servers of one's own usually ignore it.",
    )

    # -- who may ask
    auth: Literal["required", "dev"] = Field(
        "required",
        description="`required`: every request needs a key. `dev`: everyone is the user dev with every right;"
        " refused unless the server listens on a loopback address only.",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="Static keys, as tenant/user:key and separated by commas. Without any, a worker with"
        " auth=required answers 401 to everyone. A key needs 16 characters or more, so that it cannot be guessed.",
    )
    max_body_bytes: Positive = Field(
        1 << 20,
        description="Largest request body. Larger ones are answered 413 before they are read.",
    )
    max_input_chars: Positive = Field(
        32_000,
        description="Longest question. About 8,000 model tokens of English, which is more than most"
        " models read with attention.",
    )

    # -- Kafka
    group: str = Field(
        "headrace",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Consumer group of the workers, and the name of their data folder. Workers with the same"
        " group share the work.",
    )
    topic_prefix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
        description="Goes before every topic's name, for several installations on one Kafka.",
    )
    partitions: Annotated[int, Field(ge=1, le=4096)] = Field(
        8,
        description="Partitions of the conversation topics, and so the largest number of workers that answer."
        " Cannot be changed later: a conversation would move to another partition than its past.",
    )
    replication: Annotated[int, Field(ge=1, le=10)] = Field(
        1,
        description="Copies of each partition. 3 in production: then any broker can die.",
    )
    questions_days: Positive = Field(
        7, description="Days that questions are kept: how long an outage may last without loss."
    )
    tokens_days: Positive = Field(
        3, description="Days that tokens are kept: how long a stream can be read again, event by event."
    )
    turns_days: Positive = Field(
        30,
        description="Days that finished turns, feedback, controls and dead letters are kept: for whoever reads the"
        " topics, and for a store that is away or has to be rebuilt from them.",
    )
    session_seconds: Annotated[float, Field(ge=1, le=300)] = Field(
        6.0,
        description="How long Kafka waits for a silent worker before it gives its partitions to others."
        " Shorter finds a dead worker sooner; a pause longer than this costs a rebalance.",
    )
    peer_seconds: Annotated[float, Field(ge=0, le=60)] = Field(
        1.5,
        description="How long another worker may be silent before this one tells Kafka that it is dead. Finds a lost"
        " machine, of which no supervisor can tell, long before HEADRACE_SESSION_SECONDS are over; a pause longer"
        " than this costs a rebalance. Workers beat every 0.3 s, so less than 1 is refused. 0: no worker watches.",
    )
    drain_seconds: Annotated[float, Field(ge=0, le=300)] = Field(
        0.0,
        description="On SIGTERM, how long running answers may go on before they are handed over; meanwhile the worker"
        " also answers new questions. 0 hands over at once: the next worker continues them at the next token, after"
        " about a second.",
    )
    standbys: Annotated[int, Field(ge=0, le=10)] = Field(
        1,
        description="How many other workers keep a copy of each partition's tables up to date, on their disks. With"
        " one, whoever takes over from a dead worker has the conversations already; with none, it reads them from"
        " Kafka first.",
    )
    recovery_stall_seconds: Seconds = Field(
        120.0,
        description="How long the recovery of tables, or the sharing out of partitions, may go on without progress"
        " before the worker ends with exit code 75, to be started again.",
    )
    idle_fetch_pause_ms: Annotated[int, Field(ge=0, le=100)] = Field(
        0,
        description="Pause after an empty fetch. Leave it 0 on Kafka, which waits by itself; the embedded"
        " broker answers at once and wants 5, else an idle worker fills a core.",
    )

    # -- answering
    model: str = Field(
        "",
        description="The model that `headrace` and turns without a model use. Empty: the first that the model"
        " server lists.",
    )
    model_servers: str = Field(
        "",
        description="Several model servers that serve the same models under the same key, separated by commas, each"
        " with its weight if that is not 1: `3*http://a:8000/v1,http://b:8000/v1`. An answer goes to the one with the"
        " most room, and from one that fails to another. Empty: OPENAI_BASE_URL alone.",
    )
    model_resume: str = Field(
        "auto",
        description="How an interrupted answer goes on. `prefill`: the server continues a last message of role"
        " assistant (vLLM, llama.cpp, SGLang). `instruct`: it is told to go on, and what it repeats is cut off."
        " `auto`: each model is tried out, see docs/models.md. With others for models by the names that their servers"
        " give them: `auto,gpt-4o=instruct`.",
    )
    model_connect_seconds: Seconds = Field(
        5.0, description="How long to wait for a connection to the model server before trying again."
    )
    model_stall_seconds: Seconds = Field(
        60.0,
        description="How long a model may say nothing before its stream is given up and the answer resumed."
        " Longer than the slowest prompt takes to read.",
    )
    model_attempts: Positive = Field(
        8,
        description="How often an answer is taken up again without a new token before it fails visibly.",
    )
    turn_seconds: Seconds = Field(
        600.0, description="Longest time for one answer, over all its attempts. Then it fails visibly."
    )
    turn_claims: Positive = Field(
        20,
        description="How often a turn may be taken up, over all workers, before it fails visibly: a question that"
        " kills every worker that reads it must not do so for ever. Each worker lost, and each time that a model"
        " breaks off, is one.",
    )
    answer_tokens: Positive = Field(
        1024, description="Most model tokens of an answer, where the client does not ask for less."
    )
    context_tokens: Positive = Field(
        3072,
        description="Most model tokens of a prompt: instructions, earlier turns and the question. With the"
        " answer it has to fit the model's window.",
    )
    session_tokens: Positive = Field(
        8192,
        description="How much of a conversation its RocksDB row keeps, in model tokens: the last turns that fit."
        " More than a prompt takes, so that a person can scroll back; what is older comes from Postgres.",
    )
    turns_in_work: Positive = Field(
        256,
        description="Answers that one worker writes at once. Each tenant that asks gets an equal share of them.",
    )
    turns_held: Positive = Field(
        2000,
        description="Questions that one worker holds besides, which wait for their conversation or for their tenant's"
        " share. Beyond it they wait in Kafka, where nobody can tell whose they are.",
    )
    turns_held_bytes: Positive = Field(
        64 << 20,
        description="How large these questions and those in work may be together, before the rest waits in Kafka.",
    )

    # -- the token path
    frame_ms: Annotated[float, Field(ge=0, le=1000)] = Field(
        5.0,
        description="Least time between two frames of tokens to one partition. Nobody sees 5 ms; without it"
        " Kafka costs five times as much. Where Kafka takes long for a frame, up to four times as much.",
    )
    ping_seconds: Seconds = Field(
        15.0, description="After this much silence a comment goes out, so that proxies keep a stream open."
    )
    write_seconds: Seconds = Field(
        20.0,
        description="How long a reader may take no byte before it is cut off. It can come back and misses nothing.",
    )

    niceness: Annotated[int, Field(ge=-20, le=0)] = Field(
        0,
        description="-10: a worker gets a core before other processes of its machine, where it has the right to (as"
        " root, or with CAP_SYS_NICE). Tokens then wait less beside a busy Elasticsearch, and brokers on the same"
        " machine wait more. 0: it stays as it was started.",
    )

    events_from: Literal["log", "owner"] = Field(
        "log",
        description="Where a turn's events come from when another worker answers it. `log`: from any worker, which"
        " reads them from Kafka. `owner`: a GET is sent on to the owner by 307, which spares Kafka a reader a worker."
        " Clients must then reach each worker at its own `--web-host`, and send their key there too.",
    )

    # -- the archive
    window_seconds: Annotated[float, Field(ge=1, le=120)] = Field(
        60.0,
        description="How long finished turns gather before they are written to Postgres and Elasticsearch. Longer means"
        " fewer, larger batches and a longer wait until SQL and search find a turn; none is lost by it, since they"
        " wait in Kafka.",
    )
    window_turns: Annotated[int, Field(ge=1, le=100_000)] = Field(
        5000,
        description="A window closes early when so many turns wait. It is also the largest batch, which a worker holds"
        " in memory while it is written.",
    )
    window_bytes: Positive = Field(
        8 << 20,
        description="The same as a size. A batch takes about five times of it in memory, for each of the two sinks.",
    )

    index_prefix: str = Field(
        "headrace-",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$",
        description="Goes before the name of every index, for several installations on one Elasticsearch.",
    )

    # -- documents
    retrieval: Literal["on", "off"] = Field(
        "on",
        description="`on`: `headrace` answers from the documents that its user may read. `off`: no document is searched"
        " or learned, and no embedding model is loaded.",
    )
    retrieval_seconds: Seconds = Field(
        3.0,
        description="How long a search for passages may take. Then the answer says that it does without documents.",
    )
    passages: Annotated[int, Field(ge=1, le=50)] = Field(5, description="Most passages that a prompt is given.")
    passage_tokens: Positive = Field(
        1536, description="Most model tokens that these take of HEADRACE_CONTEXT_TOKENS; half of it at most."
    )
    refusal_threshold: str = Field(
        "0.5",
        description="How likely it has to be, from 0 to 1, that the passages which were found answer a question; else"
        " the answer is that the documents do not. 0: never. With others for models by their name:"
        " `0.3,gpt-large=0.1`.",
    )
    reranker: str = Field(
        "",
        description="The folder of a sentence-transformers cross-encoder that looks at the best passages once more and"
        " orders them. Empty: their order stays.",
    )
    embedding_model: str = Field(
        "all-MiniLM-L6-v2",
        description="The model that turns texts into vectors: the built-in all-MiniLM-L6-v2, the folder of another"
        " sentence-transformers model, or a name that HEADRACE_EMBEDDING_URL knows.",
    )
    embedding_url: str = Field(
        "",
        description="A server with OpenAI's `/embeddings`, with its path (usually /v1) and the key OPENAI_API_KEY."
        " Empty: a process beside each worker computes the vectors.",
    )
    document_bytes: Annotated[int, Field(ge=1024, le=64 << 20)] = Field(
        8 << 20, description="Largest document, as a file or text. Kafka keeps it as one record."
    )

    # -- memory
    memory: Literal["on", "off"] = Field(
        "on",
        description="`on`: what a user tells about themselves is kept, and `headrace` uses it in later conversations,"
        " unless the user has switched that off. `off`: nothing is kept or used; what is there can still be read and"
        " erased.",
    )
    memory_facts: Annotated[int, Field(ge=1, le=1000)] = Field(
        100, description="Most facts that are kept of a user. Then the oldest one gives way."
    )
    memory_model: str = Field(
        "",
        description="The model that says what of a question is worth keeping, in any language; it is asked once for"
        " each turn, after its answer. Empty: patterns of English sentences say it, and no model is asked.",
    )
    summary_tokens: Annotated[int, Field(ge=0, le=4096)] = Field(
        256,
        description="Most model tokens of a conversation's summary, which stands in a prompt for the turns that do not"
        " fit. The model writes it after an answer, now and then. 0: there is none.",
    )

    # -- answer cache
    answer_cache: Literal["off", "user", "tenant", "public"] = Field(
        "off",
        description="Who is given an earlier answer instead of a new one, where the question, the passages, the"
        " instructions and the model are the same: `user`: whoever it was given to; `tenant`: also everyone of the"
        " tenant, if everyone may read its passages; `public`: as `tenant`, and besides everyone whose tenant has no"
        " documents shares the answers to the same words. `off`: nothing is kept.",
    )
    answer_cache_seconds: Seconds = Field(
        86_400.0,
        description="How long an answer may be given again. A document that changes ends that earlier; a better model"
        " behind the same name does not.",
    )
    answer_cache_similarity: Annotated[float, Field(ge=0.8, le=1)] = Field(
        0.95,
        description="The cosine from which two questions may be the same; what turns a question, such as a `not`, a"
        " number or a name, has to be the same besides. Lower gives more answers again, and more of them wrongly."
        " 1: only the very same words.",
    )

    # -- metrics topics
    metrics_grace_seconds: Annotated[float, Field(ge=0, le=600)] = Field(
        5.0,
        description="How long a metrics window stays open after its end, for turns that are on their way. What comes"
        " later is a correction: the window is published again with a higher revision.",
    )
    metrics_correct_seconds: Annotated[float, Field(ge=300, le=604_800)] = Field(
        3600.0,
        description="How long a metrics window can be corrected. A turn that is later than that goes to the dead"
        " letters. Longer keeps more rows on the workers' disks, one a turn.",
    )
    input_price: str = Field(
        "",
        description="What a million model tokens of prompts cost, for the cost in the metrics topics and the archive;"
        " in a currency of your choice and with three decimals at most. With others for models by the names that their"
        " servers give them: `2.5,gpt-4o=5`. Empty: no price. It holds for what is measured and archived from then on.",
    )
    output_price: str = Field("", description="The same for model tokens of answers.")

    # -- what an operator reads
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="`json`: one ECS object a line. `text`: for people. `auto`: text on a terminal."
    )

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _brokers(cls, value: str) -> str:
        for broker in value.split(","):
            host, _, port = broker.strip().rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"{broker!r} is not host:port")
        return ",".join(broker.strip() for broker in value.split(","))

    @field_validator("elasticsearch_url", "openai_base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if not re.match(r"https?://[^/\s]+", value):
            raise ValueError("must be a URL that begins with http:// or https://")
        return value.rstrip("/")

    @field_validator("model_servers")
    @classmethod
    def _servers(cls, value: str) -> str:
        parse_servers(value)
        return value

    @field_validator("model_resume")
    @classmethod
    def _ways(cls, value: str) -> str:
        parse_ways(value)
        return value

    @field_validator("refusal_threshold")
    @classmethod
    def _thresholds(cls, value: str) -> str:
        parse_thresholds(value)
        return value

    @field_validator("input_price", "output_price")
    @classmethod
    def _prices(cls, value: str) -> str:
        parse_prices(value)
        return value

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: SecretStr) -> SecretStr:
        if not re.match(r"postgres(ql)?://", value.get_secret_value()):
            raise ValueError("must be a URL that begins with postgresql://")
        try:
            conninfo_to_dict(value.get_secret_value())
        except ProgrammingError:  # which quotes what it does not understand, perhaps a password
            raise ValueError("must be a URL as libpq reads it: postgresql://user@host:5432/database") from None
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys(cls, value: SecretStr) -> SecretStr:
        parse_keys(value.get_secret_value())
        return value

    @field_validator("peer_seconds")
    @classmethod
    def _beats(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError("must be 0, or 1 at least")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.session_tokens < self.context_tokens:
            raise ValueError("HEADRACE_SESSION_TOKENS must be at least HEADRACE_CONTEXT_TOKENS")
        return self

    @property
    def keys(self) -> dict[str, tuple[str, str]]:
        """The static keys: key -> (tenant, user)."""
        return parse_keys(self.api_keys.get_secret_value())

    def threshold(self, *models: str) -> float:
        """Return HEADRACE_REFUSAL_THRESHOLD for the first of these names that has its own, else for all others."""
        thresholds = parse_thresholds(self.refusal_threshold)
        return next((thresholds[model] for model in models if model in thresholds), thresholds[""])

    @property
    def prices(self) -> tuple[dict[str, float], dict[str, float]]:
        """HEADRACE_INPUT_PRICE and HEADRACE_OUTPUT_PRICE by model, under "" for those that are not named."""
        return parse_prices(self.input_price), parse_prices(self.output_price)

    @property
    def ways_to_resume(self) -> dict[str, Resume]:
        """HEADRACE_MODEL_RESUME of each model that has its own, and of the others under ""."""
        return parse_ways(self.model_resume)

    @property
    def model_urls(self) -> list[tuple[str, float]]:
        """The model servers, each with its weight."""
        return parse_servers(self.model_servers) or [(self.openai_base_url, 1.0)]


def parse_servers(text: str) -> list[tuple[str, float]]:
    """Return (url, weight) of each server; raises ValueError."""
    servers = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)\*)?(https?://[^/\s]+\S*)", entry)
        if not match or float(match[1] or 1) <= 0:
            raise ValueError(f"{entry!r} is not a URL that begins with http:// or https://, or weight*URL")
        servers.append((match[2].rstrip("/"), float(match[1] or 1)))
    if len({url for url, _ in servers}) < len(servers):
        raise ValueError("a server is named twice; give it a weight instead")
    return servers


def parse_thresholds(text: str) -> dict[str, float]:
    """Return the threshold of each model that has its own, and of the others under ""; raises ValueError."""
    found = _by_model(text, r"0(\.\d+)?|1(\.0+)?", "a number from 0 to 1")
    if "" not in found:
        raise ValueError("needs a number for all models that are not named, such as 0.3")
    return {model: float(number) for model, number in found.items()}


def parse_ways(text: str) -> dict[str, Resume]:
    """Return how each model that has its own way goes on, and the others under ""; raises ValueError."""
    found = _by_model(text, "|".join(RESUME), "'auto', 'prefill' or 'instruct'")
    if "" not in found:
        raise ValueError("needs a way for all models that are not named, such as auto")
    return {model: RESUME[way] for model, way in found.items()}


def parse_prices(text: str) -> dict[str, float]:
    """Return the price of each model that has its own, and of the others under "", if they have one; see above."""
    if not text.strip():
        return {}
    found = _by_model(text, r"\d{1,6}(\.\d{1,3})?", "a price with three decimals at most")
    return {model: float(price) for model, price in found.items()}


def _by_model(text: str, form: str, what: str) -> dict[str, str]:
    """Return the value of each model that is named, and under "" that of the others; raises ValueError."""
    found: dict[str, str] = {}
    for entry in (part.strip() for part in text.split(",")):
        name, _, value = entry.rpartition("=")
        if not re.fullmatch(form, value):
            raise ValueError(f"{entry!r} is not {what}, alone or behind model=")
        found[name.strip()] = value
    return found


def parse_keys(text: str) -> dict[str, tuple[str, str]]:
    """Return key -> (tenant, user); raises ValueError, which never quotes a key."""
    keys = {}
    for number, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
        match = re.fullmatch(r"([\w.@-]+)/([\w.@-]+):(\S{16,})", entry)
        if not match:
            raise ValueError(f"entry {number} must be tenant/user:key, with a key of 16 characters or more")
        keys[match[3]] = (match[1], match[2])
    return keys


def variable(field: str) -> str:
    """Return the environment variable of a field."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"HEADRACE_{field.upper()}"


def explain(error: ValidationError) -> str:
    """Say in one line a mistake which variable is wrong and what it may be, without quoting secrets."""
    lines = []
    for mistake in error.errors(include_input=False, include_url=False):
        name = str(mistake["loc"][0]) if mistake["loc"] else ""
        shown = variable(name) if name in Settings.model_fields else name
        message = mistake["msg"].removeprefix("Value error, ")
        lines.append(f"{shown}: {message}" if shown else message)
    return "\n".join(lines)


def misspelt(names: Iterable[str]) -> list[str]:
    """Say of each variable that is almost one of ours, but not quite, which one it was probably meant to be.

    Names that resemble none are left alone: Kubernetes makes some of its own for a service called headrace.
    """
    known = [variable(field) for field in Settings.model_fields]
    strangers = sorted(name for name in names if name.startswith("HEADRACE_") and name not in known)
    meant = [(name, get_close_matches(name, known, n=1, cutoff=0.93)) for name in strangers]
    return [f"{name}: there is no such setting; did you mean {close[0]}?" for name, close in meant if close]


@lru_cache(maxsize=1)
def load() -> Settings:
    """Return the settings, or end the process with what is wrong with them."""
    if wrong := misspelt(os.environ):
        _refuse("\n".join(wrong))
    try:
        return Settings()
    except ValidationError as error:
        _refuse(explain(error))


def _refuse(why: str) -> NoReturn:
    sys.stderr.write(f"Headrace cannot start, because a setting is wrong:\n{why}\nSee docs/settings.md.\n")
    raise SystemExit(os.EX_CONFIG)  # by which a supervisor knows that trying again is no use
