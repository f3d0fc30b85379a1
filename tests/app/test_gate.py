"""Which requests reach the server behind the page."""

import asyncio
import json

import pytest

from loraport.app.gate import Gate, names_address
from loraport.app.limits import Limits


def answer(path, *, method="GET", body=b"", headers=(), loopback=True, mcp=False, folder, limits=None):
    """(status, body as the server behind got it or what the gate said, headers) of one request."""
    got = []

    async def behind(scope, receive, send):
        while True:
            message = await receive()
            got.append(message)
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    sent = []
    pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    ]

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    given = {"host": "127.0.0.1:7860", **dict(headers)}
    scope = {
        "type": "http", "method": method, "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    gate = Gate(behind, limits or Limits(reserve=0), folder, loopback=loopback, mcp=mcp)
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], b"".join(one.get("body", b"") for one in got), dict(sent[0]["headers"]), got


@pytest.mark.parametrize(
    ("path", "code"),
    [
        *((path, 200) for path in ("/", "/config", "/assets/a.js", "/theme.css", "/results/x/report.html")),
        *((f"/gradio_api/{path}", 200) for path in ("info", "queue/join", "file=/tmp/a.safetensors", "heartbeat/x")),
        ("/gradio_api/file=C:/Users/a.safetensors", 200),
        *((f"/gradio_api/{path}", 403) for path in ("file=http://a.b/c", "file=HTTPS://a.b", "file=//http://a.b")),
        ("/gradio_api/file=%68ttp://a.b/c", 403),
        *((f"/gradio_api/{path}", 404) for path in ("proxy=http://a.b", "runs", "run-history/connect", "vibe-code/")),
        *((f"/gradio_api/{path}", 404) for path in ("dev/reload", "mcp/", "custom_component/1", "infos", "")),
        *((path, 404) for path in ("/monitoring", "/login", "/manifest.json", "/gradio_api", "/configs")),
    ],
)
def test_only_what_the_page_uses_gets_in(path, code, tmp_path):
    assert answer(path, folder=tmp_path)[0] == code


def test_mcp_is_open_by_its_switch_only(tmp_path):
    assert answer("/gradio_api/mcp/", folder=tmp_path)[0] == 404
    assert answer("/gradio_api/mcp/", folder=tmp_path, mcp=True)[0] == 200


@pytest.mark.parametrize(
    ("host", "loopback", "code"),
    [
        *((host, True, 200) for host in ("127.0.0.1:7860", "localhost:1", "[::1]:7860", "localhost")),
        *((host, True, 403) for host in ("evil.com", "127.0.0.1.evil.com:7860", "", "[::1", "localhost.evil.com")),
        ("studio.lan:7860", False, 200),
    ],
)
def test_another_name_for_this_machine_does_not_get_in(host, loopback, code, tmp_path):
    assert answer("/", headers={"host": host}, loopback=loopback, folder=tmp_path)[0] == code


def test_another_site_may_not_use_the_page(tmp_path):
    own = answer("/config", headers={"origin": "http://127.0.0.1:7860"}, folder=tmp_path)
    other = answer("/config", headers={"origin": "https://evil.com"}, folder=tmp_path)
    assert own[0] == 200 and other[0] == 403
    frame = {"headers": {"origin": "null"}, "folder": tmp_path}  # one that may run scripts and has no origin
    assert answer("/results/x/compared/a.mp4", **frame)[0] == 200
    assert answer("/config", **frame)[0] == answer("/results/x", method="POST", **frame)[0] == 403
    assert b"default-src 'self'" in own[2][b"content-security-policy"]


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ({"data": ["toy:noir", {"path": "/tmp/x/a.safetensors", "url": "http://127.0.0.1:7860/x"}]}, False),
        ({"data": [{"path": "http://a.b/c.safetensors"}]}, True),
        ({"data": [[{"more": {"path": "HTTPS://a.b/c"}}]]}, True),
        ({"path": "C:/a"}, False),
        ({"lora": "http://a.b"}, False),  # a name: refused where names are looked up
    ],
)
def test_files_by_address_do_not_get_in(value, is_one, tmp_path):
    body = json.dumps(value).encode()
    assert names_address(body) == is_one
    code, got, *_ = answer("/gradio_api/queue/join", method="POST", body=body, folder=tmp_path)
    assert (code, got) == ((403, b"") if is_one else (200, body))


def test_broken_and_huge_requests(tmp_path):
    deep = b"[" * 100_000
    assert (
        answer("/gradio_api/queue/join", method="POST", body=deep, folder=tmp_path)[0] == 200
    )  # the server's to refuse
    assert answer("/gradio_api/queue/join", method="POST", body=b"x" * (1 << 21), folder=tmp_path)[0] == 413


def test_uploads_say_how_long_they_are_and_are_held_to_it(tmp_path):
    limits = Limits(upload=1000, reserve=0)

    def upload(size, said):
        headers = {} if said is None else {"content-length": str(said)}
        return answer(
            "/gradio_api/upload", method="POST", body=b"x" * size, headers=headers, folder=tmp_path, limits=limits
        )  # fmt: skip

    assert upload(900, 900)[0] == 200
    assert upload(900, None)[0] == 411
    assert upload(200_000, 200_000)[0] == 413
    assert upload(200_000, 900)[3][-1]["type"] == "http.disconnect"
    full = Limits(upload=1000, reserve=1 << 60)
    code, *_ = answer(
        "/gradio_api/upload", method="POST", headers={"content-length": "9"}, folder=tmp_path, limits=full
    )
    assert code == 413
