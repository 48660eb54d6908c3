"""Load on `structsam-export serve`: photos, masks, and everything now and then.

    structsam-export serve BUNDLE
    uvx locust -f scripts/locustfile.py --headless --users 32 --spawn-rate 32 --run-time 2m \
        --host http://127.0.0.1:8000

Every photo is new to the server: its bytes end with a number, which decoders of images ignore. An
answer 429 is no failure; the client waits as long as it says. At the end a table for
docs/serving.md is printed, and the exit code is 1 where anything failed, or where the server's
memory, without its kept images, grew by more than a tenth in the second half.
"""

import contextlib
import itertools
import json
import random
import re
import statistics
import uuid
from pathlib import Path

import gevent
from locust import HttpUser, between, events, task

SAMPLE = Path(__file__).resolve().parents[1] / "structsam_export" / "assets" / "coffee.png"
MOST_GROWTH = 1.1
EVERY = 2  # seconds between looks at /metrics
number, run = itertools.count(), uuid.uuid4().bytes
spent: dict[str, list[float]] = {"encode": [], "decode": []}
refused: list[str] = []
memory: list[tuple[float, float]] = []  # (all, without kept images) in MiB


@events.init_command_line_parser.add_listener
def add_options(parser):
    parser.add_argument("--photos", default=str(SAMPLE), help="A photo, or a folder of photos.")
    parser.add_argument("--token", default="", help="Of the server.")


def photos_of(path):
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.read_bytes() for file in found if file.is_file()]


class Client(HttpUser):
    """One who sends a photo, asks for some masks of it, and sends the next."""

    wait_time = between(0.05, 0.5)

    def on_start(self):
        options = self.environment.parsed_options
        self.photos, self.image = photos_of(Path(options.photos)), None
        if options.token:
            self.client.headers["Authorization"] = f"Bearer {options.token}"
        self.send_photo()

    def ask(self, path, name, **request):
        """Return the answer's JSON, or None after a 429 or a failure."""
        with self.client.post(path, name=name, catch_response=True, **request) as answer:
            if answer.status_code == 429:
                refused.append(name)
                answer.success()
                gevent.sleep(float(answer.headers["Retry-After"]))
            elif answer.status_code == 200:
                return answer.json()
            else:
                answer.failure(f"{answer.status_code}: {answer.text[:200]}")
        return None

    @task(10)
    def send_photo(self):
        photo = random.choice(self.photos) + run + next(number).to_bytes(8, "big")
        told = self.ask("/v1/images", "photo", data=photo)
        if told is not None:
            self.image = told
            spent["encode"].append(told["encode_ms"])

    @task(120)
    def find_masks(self):
        if self.image is None:
            return self.send_photo()
        width, height = self.image["width"], self.image["height"]
        xs, ys = (sorted(random.sample(range(side), 2)) for side in (width, height))
        box = {"boxes": [[xs[0], ys[0], xs[1], ys[1]]]}
        point = {"points": [[xs[0], ys[0]]], "best": True}
        asked = random.choice([point, box])
        told = self.ask(f"/v1/images/{self.image['id']}/masks", "masks", json=asked)
        if told is not None:
            spent["decode"].append(told["decode_ms"])

    @task(1)
    def find_everything(self):
        if self.image is not None:
            settings = {"points_per_side": 16}
            self.ask(f"/v1/images/{self.image['id']}/everything", "everything", json=settings)


def look(client):
    text = client.get("/metrics").text
    values = dict(re.findall(r"^(process_resident_memory_bytes|structsam_cache_bytes) (\S+)$",
                             text, re.MULTILINE))  # fmt: skip
    if "process_resident_memory_bytes" in values:
        whole, kept = (float(values.get(name, 0)) / 2**20 for name in
                       ("process_resident_memory_bytes", "structsam_cache_bytes"))  # fmt: skip
        memory.append((whole, whole - kept))


@events.test_start.add_listener
def watch(environment, **_):
    from requests import RequestException, Session

    class At(Session):
        def get(self, path):
            return super().get(environment.host + path, timeout=10)

    def forever():
        client = At()
        while True:
            with contextlib.suppress(RequestException):
                look(client)
            gevent.sleep(EVERY)

    gevent.spawn(forever)


def percentiles(times):
    """Return p50 and p99, within what was seen: few times tell of no larger ones."""
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return cuts[49], cuts[98]


def row(what, p50, p99, count):
    print(f"| {what} | {p50:.0f} ms | {p99:.0f} ms | {count} |")


@events.quitting.add_listener
def report(environment, **_):
    total = environment.stats.total
    print("\n| what | p50 | p99 | count |\n|---|---|---|---|")
    for step, times in spent.items():
        if len(times) > 1:
            row(f"{step}, in the server", *percentiles(times), len(times))
    for entry in sorted(environment.stats.entries.values(), key=lambda entry: entry.name):
        p50, p99 = (entry.get_response_time_percentile(share) or 0 for share in (0.5, 0.99))
        row(f"{entry.name}, from request to answer", p50, p99, entry.num_requests)
    print(json.dumps({"requests": total.num_requests, "failures": total.num_failures,
                      "told to come again (429)": len(refused)}))  # fmt: skip
    if not memory:
        print("the server told no memory: it does not answer, or does not run on Linux")
        return
    middle = len(memory) // 2
    for moment, place in (("start", 0), ("middle", middle), ("end", -1)):
        whole, bare = memory[place]
        print(f"memory at the {moment}: {whole:.0f} MiB, {bare:.0f} without kept images")
    if memory[-1][1] > MOST_GROWTH * memory[middle][1]:
        print("the server's memory grew")
        environment.process_exit_code = 1
