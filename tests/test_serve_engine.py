"""The engine of ``hybrid-serve``: shared passes, cancelling, deadlines, the bounded queue, closing."""

from __future__ import annotations

import io
import json
import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import class_pair, one_network
from PIL import Image
from serving import PATIENCE, Held, png, running

from hybrid import HybridPipeline
from hybrid.picture_files import KEY, read_settings
from hybrid.serve.engine import Capacity, Closed, Engine, Full
from hybrid.serve.jobs import Done, Drawing, Event, Failed, Job, Preview
from hybrid.serve.start import load_engine
from hybrid.serve.uploads import read_edit


class Client:
    """Submits jobs and keeps what they are told."""

    def __init__(
        self, engine: Engine, prompt: str, *seeds: int, drawing: Drawing | None = None, **options: Any
    ) -> None:
        self.told: queue.Queue[Event] = queue.Queue()
        self.job = Job(prompt, seeds or (0,), drawing or Drawing(), self.told.put, **options)
        engine.submit(self.job)

    def next(self) -> Event:
        return self.told.get(timeout=PATIENCE)

    def end(self) -> Any:
        """The job's end, previews left out."""
        while isinstance(event := self.next(), Preview):
            pass
        return event


def pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


def test_a_picture_is_the_pipelines_own_and_tells_how_it_was_drawn(pipe: HybridPipeline) -> None:
    alone = pipe("bag", seed=7, steps=3)
    with running(pipe) as engine:
        done = Client(engine, "bag", 7, drawing=Drawing(steps=3)).end()
    assert isinstance(done, Done)
    assert pixels(done.pictures[0].png) == alone.images[0].tobytes()
    assert done.pictures[0].origin == tuple(alone.origin[0].tolist())
    assert (done.grid, done.size, done.batch, done.lossy) == ((4, 4), (8, 8), 1, None)
    assert (done.passes["prefix"], done.passes["fill"]) == (4, 3)
    assert {"waited", "previews", "prefix", "fill"} <= set(done.seconds)


def test_a_saved_picture_is_repeated_by_its_settings(pipe: HybridPipeline, tmp_path: Path) -> None:
    with running(pipe) as engine:
        done = Client(engine, "bag", 5, 6, drawing=Drawing(method="ar", temperature=0.5)).end()
    (tmp_path / "a.png").write_bytes(done.pictures[1].png)
    settings = read_settings(tmp_path / "a.png")
    assert (settings.prompt, settings.seed, settings.config, settings.drawing.method) == ("bag", 6, "tiny", "ar")
    assert settings.drawing.ar_fraction == pipe.defaults.ar_fraction  # of another method, once it is asked for
    again = pipe("bag", seed=6, method="ar", temperature=settings.drawing.ar.temperature)
    assert pixels(done.pictures[1].png) == again.images[0].tobytes()


def as_if_alone(pipe: HybridPipeline, client: Client, done: Done) -> None:
    """Each picture is what the pipeline draws for its seed."""
    for picture in done.pictures:
        alone = pipe(client.job.prompt, seed=picture.seed, **client.job.drawing.arguments())
        assert pixels(picture.png) == alone.images[0].tobytes()
        assert picture.origin == tuple(alone.origin[0].tolist())
        assert done.passes == alone.phases.passes
        assert all(alone.settings[name] == value for name, value in done.settings.items())


MIXED = [
    Drawing(),
    Drawing(steps=2, guidance_scale=2.0),
    Drawing(method="ar", temperature=0.7),
    Drawing(method="masked", steps=3, guidance_scale=1.5, negative_prompt="Bag"),
    Drawing(ar_fraction=0.5, steps=1),
    Drawing(height=4, width=12),
]


def test_requests_of_any_settings_share_passes_and_each_picture_is_as_if_alone(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    with running(held) as engine:
        clients = [Client(engine, "bag", 1)]
        held.wait_until_begun()
        clients += [Client(engine, "Sneaker", seed, seed + 1, drawing=drawing) for seed, drawing in enumerate(MIXED)]
        held.let_go(7)
        ends = [client.end() for client in clients]
    for client, end in zip(clients, ends, strict=True):
        as_if_alone(pipe, client, end)
    # Nine share the AR model's passes: all but the masked model's own and the other grid. The masked model's own wait
    # for company until those of the short prefixes are there.
    assert [end.batch for end in ends] == [9, 9, 9, 9, 7, 9, 2]


def test_whoever_comes_later_joins_what_has_begun(pipe: HybridPipeline) -> None:
    held, late = Held(pipe), list[Client]()

    def join() -> None:
        if not late:
            late.append(Client(engine, "Sneaker", 2, drawing=Drawing(method="ar")))

    with running(held) as engine:
        first = Client(engine, "bag", 1, drawing=Drawing(method="ar"))
        held.wait_until_begun()
        held.on_step = join
        held.let_go(2)
        ends = [first.end(), late[0].end()]
    assert [end.batch for end in ends] == [2, 2]
    # The other one comes when the first has its first row, and is one token short of a row behind from then on.
    assert [row for _, row in held.steps] == [1, 1, 2, 2, 3, 3, 4, 4]
    as_if_alone(pipe, first, ends[0])
    as_if_alone(pipe, late[0], ends[1])


@pytest.mark.parametrize("method", ["exact", "relaxed", "refined", "jacobi", "zipar"])
def test_what_shares_no_passes_shares_a_batch_where_the_settings_are_equal(pipe: HybridPipeline, method: str) -> None:
    held, drawing = Held(pipe), Drawing(method=method)
    with running(held) as engine:
        first = Client(engine, "bag", 1, drawing=drawing)
        held.wait_until_begun()
        others = [
            Client(engine, "Sneaker", 3, drawing=drawing),
            Client(engine, "bag", 4),
            Client(engine, "bag", 5, drawing=Drawing(method=method, temperature=0.5)),
            Client(engine, "Bag", 9, 10, drawing=drawing, previews=None),
        ]
        held.let_go(5)
        ends = [client.end() for client in (first, *others)]
    assert [end.batch for end in ends] == [1, 3, 1, 1, 3]
    for client, end in zip((first, *others), ends, strict=True):
        for picture in end.pictures:
            alone = pipe(client.job.prompt, seed=picture.seed, **client.job.drawing.arguments())
            assert pixels(picture.png) == alone.images[0].tobytes()


def test_a_batch_has_at_most_its_pictures_and_nobody_is_passed_over(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    with running(held, batch=3) as engine:
        clients = [Client(engine, "bag", 1)]
        held.wait_until_begun()
        clients += [Client(engine, "bag", *range(count)) for count in (2, 2, 1)]
        held.let_go(4)
        assert [client.end().batch for client in clients] == [3, 3, 3, 3]
    assert [len(prompts) for prompts in held.asked] == [1, 2, 2, 1]


def test_a_mistake_in_one_request_spares_its_neighbours(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    with running(held) as engine:
        Client(engine, "bag")
        held.wait_until_begun()
        right, wrong = Client(engine, "bag", 2), Client(engine, "shoo", 2)
        many = Client(engine, "bag", 2, drawing=Drawing(method="masked", steps=17))
        held.let_go(10)
        assert isinstance(right.end(), Done)
        failed, stopped = wrong.end(), many.end()
    assert isinstance(failed, Failed) and failed.reason == "invalid"
    assert failed.message.startswith("prompt 'shoo': not a class of tiny")
    assert stopped == Failed("invalid", "17 steps for 16 places: use at most 16 steps")


def test_pictures_of_one_network_for_both_phases_are_as_if_alone() -> None:
    pipe = one_network()
    held = Held(pipe)
    drawings = (Drawing(), Drawing(method="ar"), Drawing(method="masked", guidance_scale=2.0), Drawing())
    with running(held) as engine:
        clients = [Client(engine, "bag", 1)]
        held.wait_until_begun()
        clients += [Client(engine, "Sneaker", seed, drawing=drawing) for seed, drawing in enumerate(drawings)]
        held.let_go(5)
        ends = [client.end() for client in clients]
    for client, end in zip(clients, ends, strict=True):
        as_if_alone(pipe, client, end)
    assert [end.batch for end in ends] == [4, 4, 4, 1, 4]


def test_an_error_amid_the_passes_is_told_to_all_who_share_them_and_the_engine_lives_on(
    pipe: HybridPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(pipe) as engine:
        with monkeypatch.context() as patch:
            patch.setattr("hybrid.batching.Batcher.step", lambda _: 1 / 0)
            failed = Client(engine, "bag").end()
        assert failed == Failed("error", "drawing failed; the server's log says why")
        assert "ZeroDivisionError" in caplog.text and engine.load() == (0, 0)
        assert isinstance(Client(engine, "bag").end(), Done)


def test_previews_follow_every_row_and_pass_and_what_is_unwritten_is_transparent(pipe: HybridPipeline) -> None:
    with running(pipe) as engine:
        client = Client(engine, "bag", 3, drawing=Drawing(ar_fraction=0.5, steps=3), previews=None)
        told = [client.next() for _ in range(5)]
    assert [(event.phase, event.index, event.total) for event in told[:4] if isinstance(event, Preview)] == [
        ("prefix", 1, 2),
        ("prefix", 2, 2),
        ("fill", 1, 3),
        ("fill", 2, 3),
    ]
    assert isinstance(told[4], Done)
    shares = []
    for event in told[:4]:
        assert isinstance(event, Preview)
        alpha = Image.open(io.BytesIO(event.pngs[0])).getchannel("A")
        shares.append(sum(alpha.histogram()[255:]) / 64)
    assert shares[:2] == [0.25, 0.5] and 0.5 < shares[2] < shares[3] < 1
    half = Image.open(io.BytesIO(told[1].pngs[0])).getchannel("A")  # type: ignore[union-attr]
    assert half.crop((0, 0, 8, 4)).getextrema() == (255, 255) and half.crop((0, 4, 8, 8)).getextrema() == (0, 0)


@pytest.mark.parametrize(("most", "passes"), [(0, []), (1, [3]), (2, [2, 4]), (9, [1, 2, 3, 4])])
def test_fewer_previews_are_evenly_spread(pipe: HybridPipeline, most: int, passes: list[int]) -> None:
    with running(pipe) as engine:
        client = Client(engine, "bag", drawing=Drawing(method="masked", steps=5), previews=most)
        seen = []
        while isinstance(event := client.next(), Preview):
            seen.append(event.index)
    assert seen == passes


def test_cancelling_a_waiting_job_frees_its_place(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    with running(held, queue=1) as engine:
        Client(engine, "bag")
        held.wait_until_begun()
        waiting = Client(engine, "bag")
        with pytest.raises(Full):
            Client(engine, "bag")
        engine.cancel(waiting.job)
        assert engine.load() == (0, 1)
        instead = Client(engine, "bag")
        held.let_go(2)
        assert isinstance(instead.end(), Done)
    assert len(held.asked) == 2 and waiting.told.empty()


def test_cancelling_a_running_job_stops_it_between_two_passes(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    with running(held) as engine:
        client = Client(engine, "bag", drawing=Drawing(method="masked", steps=8))
        held.wait_until_begun()
        held.on_step = lambda: engine.cancel(client.job)
        held.let_go()
        after = Client(engine, "bag", drawing=Drawing(method="ar"))
        held.let_go()
        assert isinstance(after.end(), Done)
    assert [step for step in held.steps if step[0] == "fill"] == [("fill", 1)]
    assert client.told.empty()


def test_whoever_leaves_spares_its_company(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    with running(held) as engine:
        Client(engine, "bag")
        held.wait_until_begun()
        leaves, stays = Client(engine, "bag", 1), Client(engine, "bag", 2)
        held.let_go()
        held.wait_until_begun()
        engine.cancel(leaves.job)
        held.let_go(2)
        assert pixels(stays.end().pictures[0].png) == pipe("bag", seed=2).images[0].tobytes()
    assert leaves.told.empty()


def test_a_full_queue_says_when_to_come_back(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    with running(held, queue=3) as engine:
        Client(engine, "bag")
        held.wait_until_begun()
        Client(engine, "bag", 1, 2)
        with pytest.raises(Full) as caught:
            Client(engine, "bag", 1, 2)
        Client(engine, "bag", 1)
    assert caught.value.seconds >= 1
    assert str(caught.value) == f"too many pictures are waiting; try again in {caught.value.seconds} s"


@pytest.mark.parametrize("capacity", [{"batch": 2}, {"queue": 2}])
def test_a_job_has_a_picture_and_no_more_than_wait_or_are_drawn(pipe: HybridPipeline, capacity: dict[str, int]) -> None:
    with running(pipe, **capacity) as engine:
        with pytest.raises(ValueError, match="3 pictures: must be 1 to 2"):
            Client(engine, "bag", 1, 2, 3)
        assert isinstance(Client(engine, "bag", 1, 2).end(), Done)


def test_a_deadline_ends_waiting_and_running_jobs(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    with running(held) as engine:
        runs = Client(engine, "bag", deadline=0.05)
        held.wait_until_begun()
        waits = Client(engine, "bag", deadline=0.01)
        time.sleep(max(0.0, runs.job.expires - time.monotonic()))
        held.let_go(2)
        ends = [runs.end(), waits.end()]
    assert [end.reason for end in ends] == ["deadline", "deadline"]
    assert ends[0].message == "not finished within 0.05 s; try again when less is waiting"
    assert len(held.asked) == 1


def test_closing_finishes_what_it_has(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    engine = Engine(held, "tiny")  # type: ignore[arg-type]
    engine.start()
    clients = [Client(engine, "bag", drawing=Drawing(steps=steps)) for steps in (1, 2, 3)]
    engine.stop_taking()
    with pytest.raises(Closed, match="the server is shutting down"):
        Client(engine, "bag")
    held.let_go(3)
    engine.close(PATIENCE)
    assert [type(client.end()) for client in clients] == [Done] * 3
    assert not engine.alive


def test_closing_without_grace_refuses_what_it_has(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    engine = Engine(held, "tiny")  # type: ignore[arg-type]
    engine.start()
    runs = Client(engine, "bag")
    held.wait_until_begun()
    waits = Client(engine, "bag")
    closing = threading.Thread(target=engine.close)
    closing.start()
    told = [runs.end(), waits.end()]
    held.let_go()
    closing.join(PATIENCE)
    assert told == [Failed("closed", "the server is shutting down")] * 2
    assert not closing.is_alive()


def test_an_engine_that_never_started_closes(pipe: HybridPipeline) -> None:
    Engine(pipe, "tiny").close()


def test_a_mistake_of_ours_is_told_without_details_and_the_engine_lives_on(
    pipe: HybridPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(pipe) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(type(pipe), "ask", lambda *_, **__: 1 / 0)
            failed = Client(engine, "bag").end()
        assert failed == Failed("error", "drawing failed; the server's log says why")
        assert "ZeroDivisionError" in caplog.text
        assert isinstance(Client(engine, "bag").end(), Done)


def test_in_painting_keeps_what_is_black_and_notes_no_settings(pipe: HybridPipeline) -> None:
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 8, 4))
    file = io.BytesIO()
    mask.save(file, "PNG")
    edit = read_edit(png("red"), file.getvalue(), (8, 8))
    with running(pipe) as engine:
        done = Client(engine, "bag", 3, drawing=Drawing(steps=2, edit=edit)).end()
    origin = torch.tensor(done.pictures[0].origin).view(4, 4)
    assert (origin[2:] == -1).all() and (origin[:2] > 0).all()
    opened = Image.open(io.BytesIO(done.pictures[0].png))
    assert KEY not in opened.info
    expected = pipe("bag", seed=3, steps=2, image=edit.image, mask=edit.mask).images[0]
    assert opened.tobytes() == expected.tobytes()


def test_counters(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    with running(held, queue=4) as engine:
        first = Client(engine, "bag", 1)
        held.wait_until_begun()
        gone, second = Client(engine, "bag", 1), Client(engine, "bag", 1, 2, 3)
        assert "hybrid_waiting_pictures 4.0" in engine.metrics.text().decode()
        engine.cancel(gone.job)
        held.let_go(2)
        first.end(), second.end()
    text = engine.metrics.text().decode()
    for line in (
        "hybrid_pictures_total 4.0",
        'hybrid_jobs_total{end="done"} 2.0',
        'hybrid_jobs_total{end="cancelled"} 1.0',
        "hybrid_batch_pictures_sum 8.0",
        "hybrid_batch_pictures_count 2.0",
        "hybrid_waiting_pictures 0.0",
        "hybrid_running_pictures 0.0",
    ):
        assert line in text.splitlines()


def test_settings_inside_a_png_are_json(pipe: HybridPipeline) -> None:
    with running(pipe) as engine:
        done = Client(engine, "bag", 2).end()
    told = json.loads(Image.open(io.BytesIO(done.pictures[0].png)).info[KEY])
    assert (told["seed"], told["width"], told["device"]) == (2, 8, "cpu")


def test_the_thread_that_loads_the_model_warms_it_up_and_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    class Noting(HybridPipeline):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            threads.append(threading.current_thread())
            return super().__call__(*arguments, **options)

        def ask(self, *arguments: Any, **options: Any) -> Any:
            threads.append(threading.current_thread())
            return super().ask(*arguments, **options)

    def load(*names: str, **options: Any) -> HybridPipeline:
        threads.append(threading.current_thread())
        pipe = class_pair()
        pipe.__class__ = Noting
        return pipe

    monkeypatch.setattr(HybridPipeline, "from_pretrained", load)
    engine = load_engine("tiny", Capacity())
    engine.start()
    try:
        assert isinstance(Client(engine, "bag").end(), Done)
    finally:
        engine.close()
    assert len(threads) >= 3 and {thread.name for thread in threads} == {"hybrid-engine"} and len(set(threads)) == 1
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
