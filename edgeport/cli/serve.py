"""`edgeport serve DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeport.serve import Service


@click.command("serve")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0: any that is free.",
)
@click.option(
    "--lan",
    is_flag=True,
    help="Over https at this machine's addresses on its network, with a certificate made for now.",
)
@click.option("--once", is_flag=True, help="End when a page has posted its results.")
@click.option("-v", "--verbose", is_flag=True, help="Traceback on failure.")
def serve(directory: Path, port: int, lan: bool, once: bool, verbose: bool) -> None:
    """Serve the page of the export in DIR to a browser, and keep what its benchmark posts.

    Without --lan only this machine sees it, and a phone on USB through adb reverse. The address has
    a token in it; nothing is answered without. Results go to DIR.results.jsonl, beside DIR.
    """
    from edgeport.serve import serving
    from edgeport.serving.certificate import qr_code

    if lan:
        qr_code("edgeport")  # a missing package is told before anything is served
    with serving(directory, port=port, lan=lan, tell=click.echo) as service:
        try:
            _announce(service, lan)
            _wait(service, once)
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:  # SIGTERM and SIGHUP keep their exit codes
                raise
            click.echo()
        count = len(service.results.kept)
        kept = f"{count} measurements were added to {service.results.path}"
        click.echo(kept if count else "no results were posted")


def _wait(service: Service, once: bool) -> None:
    """Returns when results have come, where `once`; else only Ctrl-C ends it."""
    while not (service.results.arrived.wait(0.5) and once):
        pass


def _announce(service: Service, lan: bool) -> None:
    site = service.site
    click.echo(
        f"serving {site.directory} ({site.name}, {len(site.entries)} files,"
        f" {site.bytes / 1e6:.1f} MB) at"
    )
    for url in service.urls:
        click.echo(f"  {url}")
    if lan:
        _announce_lan(service)
    else:
        click.echo(
            "on a phone with USB debugging: run this, then open the same address on the phone"
        )
        click.echo(f"  adb reverse tcp:{service.port} tcp:{service.port}")
    click.echo(f"results are added to {service.results.path}; Ctrl-C ends")


def _announce_lan(service: Service) -> None:
    from edgeport.serving.certificate import qr_code

    click.echo()
    qr_code(service.urls[0]).terminal(compact=True)
    click.echo(
        "The browser warns that the connection is not private, because no authority has signed the"
        " certificate: go on only if it shows this SHA-256 fingerprint."
    )
    click.echo(f"  {service.fingerprint}")
