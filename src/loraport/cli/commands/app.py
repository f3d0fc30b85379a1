"""`app`: the web page, its API, and the same over MCP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from loraport.cli.options import FILES, MACHINE, CacheDir, cache_folder, need
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand
from loraport.errors import SettingsError

app = typer.Typer()


@dataclass(frozen=True)
class AddressOptions:
    """Where it is served."""

    heading: ClassVar[str] = "Address"
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets everybody on the network in, unasked."),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="INT", help="The port; 0 takes a free one.")] = 7860
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Also be an MCP server, at /gradio_api/mcp/, for programs with tools.")
    ] = False


@dataclass(frozen=True)
class VisitorOptions:
    """What visitors may read, and how much they may ask for."""

    heading: ClassVar[str] = FILES
    share_models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR", help="A folder whose models and LoRAs visitors may name; may be given several times.",
            show_default="none: presets, Hub ids and toy: names only",
        ),
    ] = None  # fmt: skip
    max_upload: Annotated[float, typer.Option(metavar="GB", help="The largest LoRA that may be uploaded.")] = 2.0
    max_waiting: Annotated[
        int, typer.Option(min=0, max=100, metavar="INT", help="How many jobs may wait behind the one that runs.")
    ] = 8


@dataclass(frozen=True)
class WorkOptions:
    """Where the work is done."""

    heading: ClassVar[str] = MACHINE
    work: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Where uploads and results lie while it runs; all is removed at the end.",
            show_default="the system's folder for temporary files",
        ),
    ] = None  # fmt: skip
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    cache: CacheDir = None


@app.command(
    name="app", cls=GroupedCommand, epilog="Example: loraport app --share-models ~/models"
)  # fmt: skip
@with_options
def serve(address: AddressOptions, visitors: VisitorOptions, place: WorkOptions) -> None:
    """Serve a web page to diagnose and move LoRAs in a browser, and the same as an API.

    It is for this machine only unless --host says otherwise. Ctrl-C ends it; uploads and results are removed then.
    """
    need("gradio", extra="app")
    if address.mcp:
        need("mcp", extra="mcp")
    from loraport import console
    from loraport.app.asks import Machine
    from loraport.app.limits import GB, Limits
    from loraport.app.server import Server, Service

    if not visitors.max_upload > 0:
        raise SettingsError(f"--max-upload is {visitors.max_upload:g} GB, but it must be more than nothing")
    service = Service(
        address.host, address.port, tuple(visitors.share_models or ()), place.work, address.mcp,
        Limits(int(visitors.max_upload * GB), visitors.max_waiting),
        Machine(place.device, cache_folder(place.cache)),
    )  # fmt: skip
    console.say_aside("loading the page, which takes some seconds")
    server = Server(service)
    if not service.is_loopback:
        console.say_aside(
            f"note: everybody on the network who reaches {address.host} can use this page: upload LoRAs, start work on "
            "this machine, fetch models from the Hub onto its disk, and read the shared folders' models; there is no "
            "password"
        )
    console.say_line(f"open {server.address} in a browser; Ctrl-C ends it")
    if address.mcp:
        console.say_line(f"MCP: {server.address}/gradio_api/mcp/")
    server.run()
    console.say_aside("ended; uploads and results are removed")
