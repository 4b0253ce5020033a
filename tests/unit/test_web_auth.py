"""Who may ask: keys, strangers, and other websites in dev mode."""

import pytest

from tests.support.fakes import ALICE, BOB
from tests.support.web_client import serving
from web.auth import is_loopback
from web.keys import Identity, Keys


async def test_a_key_says_who_asks() -> None:
    async with serving() as web:
        alice = await (await web.call("GET", "/v1/me", key=ALICE)).json()
        bob = await (await web.call("GET", "/v1/me", key=BOB)).json()

    assert (alice["tenant"], alice["user"], alice["roles"]) == ("acme", "alice", ["user"])
    assert bob["user"] == "bob"


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", f"Basic {ALICE}", ALICE, f"Bearer {ALICE}x", f"Bearer {ALICE.upper()}", "Bearer \xff"],
)
async def test_anything_but_a_known_key_is_401_and_says_how(authorization: str) -> None:
    async with serving() as web:
        answer = await web.call("GET", "/v1/me", key=None, headers={"Authorization": authorization})

    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="headrace"')
    error = (await answer.json())["error"]
    assert error["type"] == "authentication_error"
    assert error["code"] in {"missing_api_key", "invalid_api_key"}
    assert ALICE not in await answer.text()


async def test_without_any_keys_nobody_gets_in() -> None:
    async with serving(api_keys="") as web:
        assert (await web.call("GET", "/v1/me")).status == 401


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"])
async def test_what_is_no_ones_data_is_open(path: str) -> None:
    async with serving() as web:
        assert (await web.call("GET", path, key=None)).status == 200


async def test_every_other_route_wants_a_key() -> None:
    async with serving() as web:
        contract = await (await web.call("GET", "/openapi.json", key=None)).json()
        guarded = [
            (method.upper(), path.replace("{", "").replace("}", ""))
            for path, methods in contract["paths"].items()
            for method, operation in methods.items()
            if operation.get("security") != []
        ]
        let_in = [one for one in guarded if (await web.call(*one, {}, key=None)).status != 401]

    assert len(guarded) > 10
    assert let_in == []


def test_a_key_is_not_kept_as_text() -> None:
    keys = Keys({ALICE: ("acme", "alice")})

    assert keys.whose(ALICE) == Identity("acme", "alice")
    assert ALICE not in str(vars(keys))


# -- dev mode


async def test_in_dev_mode_everyone_is_dev() -> None:
    async with serving(auth="dev", api_keys="") as web:
        me = await (await web.call("GET", "/v1/me", key=None)).json()

    assert (me["tenant"], me["user"]) == ("dev", "dev")
    assert "admin" in me["roles"]


async def test_in_dev_mode_a_name_that_was_rebound_to_this_machine_is_refused() -> None:
    async with serving(auth="dev") as web:
        answer = await web.call("GET", "/v1/me", key=None, headers={"Host": "evil.example:6066"})

    assert answer.status == 403
    assert (await answer.json())["error"]["code"] == "host_not_allowed"


async def test_in_dev_mode_another_website_may_not_change_anything() -> None:
    async with serving(auth="dev") as web:
        for origin in ("https://evil.example", "null", "http://localhost:1"):
            answer = await web.call("POST", "/v1/conversations", {}, key=None, headers={"Origin": origin})

            assert answer.status == 403
            assert (await answer.json())["error"]["code"] == "origin_not_allowed"
        assert web.kafka.published == []


async def test_in_dev_mode_the_page_itself_may() -> None:
    async with serving(auth="dev") as web:
        own = str(web.server.make_url("")).rstrip("/")
        answer = await web.call("POST", "/v1/conversations", {}, key=None, headers={"Origin": own})

    assert answer.status == 201


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:6066", True),
        ("LOCALHOST.:80", True),
        ("app.localhost:6066", True),
        ("127.0.0.1:6066", True),
        ("127.9.9.9", True),
        ("[::1]:6066", True),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.1.5:6066", False),
        ("0.0.0.0", False),
        ("", False),
        ("a b", False),
        ("user@127.0.0.1", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected
