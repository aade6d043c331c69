"""The README's curl lines, as its readers run them."""

import json
import re
import subprocess

from server import Server, check, end

ADDRESS = "http://127.0.0.1:8000"

with open("README.md") as file:
    section = re.search(r"^## Server$(.*?)^## ", file.read(), re.MULTILINE | re.DOTALL)[1]
lines = [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in re.split(r"\n(?=\S)", block)]
curls = [line for line in lines if line.startswith("curl ")]
server = Server()


def run(line):
    assert ADDRESS in line, line
    command = line.replace(ADDRESS, server.url)
    shown = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    reply = json.loads(shown.stdout)
    assert "error" not in reply, reply
    answer = reply["choices"][0]["message"]["content"]
    assert answer in section, f"the README does not say {answer!r}"


def there_is_one():
    assert curls


check("the README has a line to try", there_is_one)
for number, line in enumerate(curls, 1):
    check(f"line {number} of the README answers what it says", lambda: run(line))
end()
