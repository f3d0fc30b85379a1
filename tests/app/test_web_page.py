"""The page in a real browser, as an API and over MCP: one server for all of it, which nothing outside is asked by."""

import ast
import asyncio
import shutil
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loraport.app.asks import Machine
from loraport.app.limits import Limits
from loraport.app.server import Server, Service
from loraport.cli import app as program
from tests.app.browser import Browser
from tests.reports.browser import needs_chromium
from tests.test_docs_commands import code_blocks

pytestmark = pytest.mark.slow
pytest.importorskip("loraport_lab", reason="the embedded family is not installed, with which the page is tried")

PAIR = {"source": "toy:base", "target": "toy:one-step"}
NEON = Path(__file__).parents[2] / "lab/src/loraport_lab/weights/adapters/neon.safetensors"
PAGE = Path(__file__).parents[2] / "docs/how-to/web-page.md"
OVER = "/Done|Not done|Stopped/.test(document.querySelector('#state').innerText)"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page, served in a thread."""
    pytest.importorskip("gradio", reason="gradio is not installed: the web page was not tried")
    pytest.importorskip("mcp", reason="mcp is not installed: the page was not tried over MCP")
    folder = tmp_path_factory.mktemp("app")
    (folder / "shared").mkdir()
    shutil.copy(NEON, folder / "shared")
    (folder / "secret.safetensors").write_bytes(b"x")
    (folder / "shared" / "link.safetensors").symlink_to(folder / "secret.safetensors")
    made = Server(
        Service(
            port=0,
            shared=(str(folder / "shared"),),
            work=str(folder / "work"),
            mcp=True,
            limits=Limits(upload=5_000_000, waiting=1, reserve=0),
            machine=Machine("cpu", str(folder / "cache")),
        )
    )
    thread = threading.Thread(target=made.run)
    thread.start()
    wait_until(lambda: made.is_up)
    yield made
    made.stop()
    thread.join(30)
    assert not thread.is_alive() and not made.folder.path.exists()


@pytest.fixture(scope="module")
def browser(server, tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def client(server):
    from gradio_client import Client

    return Client(server.address, verbose=False)


def wait_until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def fill_in(browser, server, upload):
    """Open the page, upload a file and name the models."""
    browser.open(server.address)
    browser.choose_file("#upload input[type=file]", upload)
    browser.until(f"document.querySelector('#upload').innerText.includes({upload.stem!r})")
    browser.type("#source input", PAIR["source"])
    browser.type("#target input", PAIR["target"])


@needs_chromium
def test_upload_log_file_and_report_while_a_second_visitor_waits(server, browser, client, tmp_path):
    from gradio_client import handle_file

    fill_in(browser, server, NEON)
    browser.type("#method input", "direct")
    browser.click("#transfer")
    browser.until("document.querySelector('#state').innerText.includes('Working')")
    second = client.submit(
        upload=handle_file(NEON), **PAIR, method="casa", settings="tau=0.9", api_name="/transfer"
    )  # fmt: skip
    wait_until(lambda: second.outputs())
    assert second.outputs()[0][0]["sentence"] == "In the line: 1 job before yours."
    refused = client.submit(lora="toy:noir", **PAIR, api_name="/diagnose").exception(20)
    assert "2 jobs are in the line already" in str(refused)

    browser.until(OVER, 60)
    assert browser.text("#state").startswith("Done")
    assert "neon-on-one-step" in browser.text("#files")
    browser.until("document.querySelector('#page iframe') !== null")
    report = browser.ask("fetch(document.querySelector('#page iframe').src).then((one) => one.text())")
    assert "40 of 40 layers were transferred" in report and str(server.folder.path) not in report
    told = browser.ask("document.querySelector('#command textarea').value")
    assert told.startswith("loraport transfer neon.safetensors --source toy:base") and "/" not in told
    assert browser.said == []
    browser.ask("[...document.querySelectorAll('button[role=tab]')].find((one) => one.innerText === 'Log').click()")
    browser.until("(document.querySelector('#log textarea') || {value: ''}).value.includes('blocks.')")

    facts, (file,), page = second.result(60)
    out = tmp_path / "cli.safetensors"
    words = ["transfer", str(NEON), "--source", "toy:base", "--target", "toy:one-step", "--method", "casa"]
    done = CliRunner().invoke(program, [*words, "--tau", "0.9", "-o", str(out), "--device", "cpu", "--no-cache"])
    assert done.exit_code == 0, done.output
    assert Path(file).read_bytes() == out.read_bytes()
    assert facts["method"] == "casa" and facts["settings"]["tau"] == 0.9 and "layers" not in facts
    assert "<html" in Path(page).read_text() and any("blocks." in line for line in facts["log"])
    assert second.outputs()[-1][0]["state"] == "done"


@needs_chromium
def test_a_stopped_job_ends_and_leaves_nothing(server, browser, client):
    before = sorted(server.folder.jobs.iterdir())  # the page and its upload are still open, from the test before
    browser.click("#transfer")
    wait_until(lambda: any(job.work is not None for job in server.office.jobs))
    (job,) = server.office.jobs
    waits = client.submit(lora="toy:noir", **PAIR, api_name="/transfer")
    wait_until(lambda: len(server.office.jobs) == 2)
    waits.cancel()  # one that waits, by the API
    browser.until("document.querySelector('#state').innerText.includes('Working')")
    browser.click("#stop")
    browser.until(OVER)
    assert browser.text("#state").startswith("Stopped")
    assert browser.ask("document.querySelector('#page iframe') === null")  # the report of the job before
    assert job.work.code not in (None, 0)
    wait_until(lambda: not server.office.jobs)
    assert sorted(server.folder.jobs.iterdir()) == before


@needs_chromium
def test_a_closed_tab_stops_its_job(server, browser):
    browser.click("#transfer")
    wait_until(lambda: any(job.work is not None for job in server.office.jobs))
    browser.call("Page.navigate", url="about:blank")
    wait_until(lambda: not server.office.jobs)


@needs_chromium
def test_a_bad_file_is_one_sentence(server, browser, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not a LoRA at all, but long enough to look like one")
    fill_in(browser, server, bad)
    browser.click("#transfer")
    browser.until(OVER)
    said = browser.text("#state")
    assert said.startswith("Not done") and "bad.safetensors" in said and str(server.folder.path) not in said
    assert "Traceback" not in browser.ask("document.body.innerText") and "\n" not in said.strip()


@needs_chromium
def test_the_page_asks_no_other_address_and_fits_a_phone(server, browser):
    browser.said.clear()  # a tab that was closed at work
    browser.resize(390, 844)
    try:
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            browser.open(server.address)
            assert browser.ask("document.documentElement.scrollWidth") <= 390
    finally:
        browser.resize(1280, 1000)
    outside = [
        one for one in browser.requests if not one.startswith((server.address, "data:", "blob:", "about:"))
    ]  # fmt: skip
    assert outside == [] and len(browser.requests) > 20
    assert browser.said == []


def test_files_outside_are_not_shown_and_not_read(server, client):
    import httpx

    secret = server.folder.path.parents[1] / "secret.safetensors"
    with httpx.Client(base_url=server.address, timeout=30) as http:
        for path in (
            f"/gradio_api/file={secret}", f"/gradio_api/file={server.folder.path}/../../secret.safetensors",
            "/gradio_api/file=/etc/passwd", "/results/../../secret.safetensors", "/results/%2e%2e/%2e%2e/secret.x",
            "/gradio_api/file=http://127.0.0.1:9/x",
        ):  # fmt: skip
            assert http.get(path).status_code in (403, 404), path
        assert http.get("/", headers={"host": "evil.com"}).status_code == 403
        large = http.post("/gradio_api/upload", files={"files": ("a.safetensors", b"x" * 6_000_000)})
        assert large.status_code == 413 and "larger than 5 MB" in large.text
    for lora in (str(secret), "link.safetensors", "../secret.safetensors"):
        said = str(client.submit(lora=lora, **PAIR, api_name="/diagnose").exception(20))
        assert "the page reads no other files" in said or "no name" in said
    taken = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    with httpx.Client(base_url=server.address, timeout=30) as http:
        begun = http.post("/gradio_api/call/diagnose", json={"data": ["", *PAIR.values(), taken]}).json()
        told = http.get(f"/gradio_api/call/diagnose/{begun['event_id']}").text
    assert "event: error" in told and "complete" not in told


def test_what_the_documentation_types(server):
    blocks = [code for language, code in code_blocks(PAGE.read_text(encoding="utf-8")) if language == "py"]
    diagnosis, transfer = (code.replace("http://127.0.0.1:7860", server.address) for code in blocks)
    names: dict = {}
    exec(compile(diagnosis.replace("toy:noir", "neon.safetensors"), "<page>", "exec"), names)
    facts = names["facts"]
    assert facts["verdict"] and 0 < facts["sure"] <= 1 and facts["state"] == "done"
    assert facts["command"] == "loraport diagnose neon.safetensors --source toy:base --target toy:one-step"
    assert "<html" in Path(names["page"]).read_text()
    known = names["client"].view_api(return_format="dict")["named_endpoints"]["/transfer"]["parameters"]
    call = next(node for node in ast.walk(ast.parse(transfer)) if getattr(node, "keywords", None))
    assert {one.arg for one in call.keywords} <= {"api_name", *(one["parameter_name"] for one in known)}
    assert all(one["parameter_has_default"] for one in known)


def test_mcp_lists_the_tools(server):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def tools():
        address = f"{server.address}/gradio_api/mcp/"
        async with streamablehttp_client(address) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            return (await session.list_tools()).tools

    found = {tool.name.rpartition("_")[2] or tool.name: tool for tool in asyncio.run(tools())}
    assert {"diagnose", "transfer"} == found.keys()
    said = found["transfer"]
    assert "distilled" in said.description and {"lora", "source", "target"} <= said.inputSchema["properties"].keys()
    assert "shared folder" in said.inputSchema["properties"]["lora"]["description"]
