"""A server as a process, checks that are printed as they end, and the demo's pictures with their answers."""

import atexit
import base64
import inspect
import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
import urllib.request


class Server:
    def __init__(self, *args):
        env = {name: value for name, value in os.environ.items() if not name.startswith("OCELLI_")}
        command = [os.environ["OCELLI_BIN"], "serve", *args, "--device", "cpu", "--port", "0"]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        atexit.register(self.stop)
        # One that says nothing is ended, and so is the wait.
        patience = threading.Timer(60, self.process.kill)
        patience.start()
        for line in self.process.stderr:
            if found := re.search(r"listening at (http://127\.0\.0\.1:\d+)", line):
                patience.cancel()
                self.url = found[1]
                # Read on: what nobody reads is lost.
                threading.Thread(target=self.process.stderr.read, daemon=True).start()
                return
        patience.cancel()
        raise RuntimeError("the server ended before it listened")

    def metric(self, name):
        with urllib.request.urlopen(f"{self.url}/metrics") as reply:
            found = re.search(rf"^ocelli:{name}\{{.*\}} (\S+)$", reply.read().decode(), re.MULTILINE)
        return float(found[1])

    def until(self, name, value):
        """Wait until a metric has a value."""
        end = time.monotonic() + 20
        while self.metric(name) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name)} and not {value}"
            time.sleep(0.02)

    def stop(self):
        self.process.kill()
        self.process.wait()


failed = False


def check(name, body):
    """Run a check and print how it ended."""
    global failed
    try:
        result = body()
        if inspect.iscoroutine(result):
            import asyncio

            asyncio.run(result)
        print(f"ok      {name}", flush=True)
    except Exception:
        failed = True
        print(f"FAILED  {name}: {traceback.format_exc()}", flush=True)


def end():
    sys.exit(failed)


def data_url(file):
    kind = "png" if file.endswith("png") else "jpeg"
    with open(file, "rb") as picture:
        return f"data:image/{kind};base64,{base64.b64encode(picture.read()).decode()}"


def message(question, *files):
    """A question about pictures, which stand before it."""
    pictures = [{"type": "image_url", "image_url": {"url": data_url(file)}} for file in files]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]


def items(count):
    """Questions of the demo, each about a picture: (answer, messages)."""
    with open("demo/images/expected.json") as file:
        found = json.load(file)["items"][:count]
    return [(item["answer"], message(item["question"], f"demo/images/{item['file']}")) for item in found]


def pairs(count):
    """Questions about two pictures, for the demo that compares: (answer, messages)."""
    with open("demo/pairs/expected.json") as file:
        found = [item for item in json.load(file)["items"] if len(item["pictures"]) == 2][:count]
    files = [[f"demo/pairs/{name}" for name in item["pictures"]] for item in found]
    return [(item["answer"], message(item["question"], *names)) for item, names in zip(found, files)]
