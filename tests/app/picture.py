"""Make the documentation's picture of the web page: `python -m tests.app.picture OUT.png [WIDTH [light|dark]]`."""

import sys
import tempfile
import threading
import time
from pathlib import Path

from loraport.app.asks import Machine
from loraport.app.server import Server, Service
from tests.app.browser import Browser


def main(place, width="1280", scheme="light"):
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Service(port=0, work=folder, machine=Machine("cpu", f"{folder}/cache")))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.is_up:
            time.sleep(0.1)
        browser = Browser(Path(folder) / "profile", int(width), 1120)
        try:
            browser.prefer(scheme)
            browser.open(server.address)
            browser.click("#example")
            browser.until("document.querySelector('#target input').value === 'toy:one-step'")
            browser.click("#transfer")
            browser.until("/Done/.test(document.querySelector('#state').innerText)", 120)
            browser.until("document.querySelector('#page iframe') !== null")
            time.sleep(2)  # the frame's page is drawn
            browser.picture(Path(place), whole=False)
        finally:
            browser.close()
            server.stop()
            thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
