"""The API of ``hybrid-serve`` through its own test client: answers, streams, limits, token, errors."""

from __future__ import annotations

import io
import json
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pairs import class_pair
from PIL import Image
from serving import PATIENCE, Held, HeldSpeech, events, picture, png, serving, until

from hybrid import HybridPipeline
from hybrid.request import METHODS
from hybrid.serve.hearing import WAITING
from hybrid.serve.schemas import ImageRequest

GENERATE, EDIT, HEAR = "/v1/images/generations", "/v1/images/edits", "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def client(pipe: HybridPipeline) -> Iterator[TestClient]:
    with serving(pipe) as client:
        yield client


def draw(client: TestClient, **body: Any) -> Any:
    return client.post(GENERATE, json={"prompt": "bag"} | body)


def paint(client: TestClient, image: bytes, mask: bytes, **fields: str) -> Any:
    return client.post(EDIT, data={"prompt": "bag"} | fields, files={"image": image, "mask": mask})


def half_mask(mode: str = "L") -> bytes:
    """Upper half to be drawn: white, or transparent."""
    mask = Image.new(mode, (8, 8), 0 if mode == "L" else (0, 0, 0, 255))
    mask.paste(255 if mode == "L" else (0, 0, 0, 0), (0, 0, 8, 4))
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def message(response: Any) -> str:
    assert set(response.json()["error"]) == {"message", "type", "code", "param"}
    text: str = response.json()["error"]["message"]
    assert "\n" not in text
    return text


# Answers


def test_pictures_in_openais_shape(client: TestClient, pipe: HybridPipeline) -> None:
    answer = draw(client, n=2, seed=3, model="tiny", size="8x8", steps=3, ar_fraction=0.5, guidance=1.5).json()
    assert {"created", "data", "size", "output_format", "report"} == set(answer)
    assert answer["size"] == "8x8"
    assert [entry["seed"] for entry in answer["data"]] == [3, 4]
    for entry in answer["data"]:
        alone = pipe("bag", seed=entry["seed"], steps=3, ar_fraction=0.5, guidance_scale=1.5)
        assert picture(entry).tobytes() == alone.images[0].tobytes()
        assert entry["origin"] == alone.origin[0].tolist()
    report = answer["report"]
    assert (report["model"], report["grid"], report["batch"]) == ("tiny", [4, 4], 2)
    assert report["settings"]["ar_tokens"] == 8 and report["passes"]["fill"] == 3


def test_a_seed_is_drawn_and_told_where_none_is_given(client: TestClient) -> None:
    told = draw(client).json()["data"][0]
    assert picture(draw(client, seed=told["seed"]).json()["data"][0]).tobytes() == picture(told).tobytes()


def test_url_is_a_data_url(client: TestClient) -> None:
    entry = draw(client, response_format="url", seed=1).json()["data"][0]
    assert "b64_json" not in entry
    head, _, data = entry["url"].partition(",")
    assert head == "data:image/png;base64"
    assert picture({"b64_json": data}).size == (8, 8)


def test_fields_that_ask_for_nothing_are_accepted(client: TestClient) -> None:
    fields = {"quality": "auto", "background": "opaque", "moderation": "low", "user": "me"}
    for style in ("vivid", "natural"):
        assert draw(client, **fields, style=style, output_compression=100).status_code == 200
    painted = paint(client, png("red"), half_mask(), **fields, input_fidelity="low", output_compression="100")
    assert painted.status_code == 200


def test_null_is_a_field_that_is_left_out(client: TestClient) -> None:
    names = set(ImageRequest.model_fields) - {"prompt", "seed"}
    nothing = draw(client, seed=3, **dict.fromkeys(names))
    assert nothing.json()["data"] == draw(client, seed=3).json()["data"]
    for name, told in (("prompt", "prompt: Field required"), ("stepz", "unknown field 'stepz'; did you mean 'steps'?")):
        refused = draw(client, **{name: None})
        assert (refused.status_code, message(refused)) == (400, told)


def test_every_method_is_taken(client: TestClient) -> None:
    for method in METHODS:
        assert draw(client, method=method).status_code == 200


def test_a_stream_has_previews_and_then_the_picture(client: TestClient, pipe: HybridPipeline) -> None:
    response = draw(client, seed=3, n=2, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    told = events(response.text)
    assert [event["type"] for event in told] == ["image_generation.partial_image"] * 8 + [
        "image_generation.completed"
    ] * 2
    assert [(e["partial_image_index"], e["image_index"]) for e in told[:4]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(e["phase"], e["step"], e["steps"]) for e in told[:8:2]] == [
        ("prefix", 1, 1),
        ("fill", 1, 4),
        ("fill", 2, 4),
        ("fill", 3, 4),
    ]
    assert picture(told[0]).mode == "RGBA"
    for event in told[8:]:
        assert picture(event).tobytes() == pipe("bag", seed=event["seed"]).images[0].tobytes()
        assert event["report"]["batch"] == 2


def test_a_stream_may_ask_for_fewer_previews(client: TestClient) -> None:
    for most in (0, 1):
        assert len(events(draw(client, stream=True, partial_images=most).text)) == most + 1


def test_models_health_and_page(client: TestClient) -> None:
    (info,) = client.get("/v1/models").json()["data"]
    assert (info["id"], info["width"], info["grid"], info["classes"]) == ("tiny", 8, [4, 4], class_pair().classes)
    assert info["methods"] == list(METHODS) and info["editing"]
    assert client.get("/health").json() == {"status": "ok", "model": "tiny", "waiting": 0, "running": 0}
    page = client.get("/")
    assert "<title>" in page.text and "default-src 'self'" in page.headers["content-security-policy"]


def test_metrics_count_requests(client: TestClient) -> None:
    draw(client), draw(client, n=0), client.get("/nothing"), client.get("/nowhere")
    text = client.get("/metrics").text
    assert 'hybrid_requests_total{path="other",status="404"} 2.0' in text
    assert f'hybrid_requests_total{{path="{GENERATE}",status="400"}}' in text
    assert "process_resident_memory_bytes" in text


# In-painting


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_in_painting_draws_where_the_mask_is_white_or_transparent(client: TestClient, mode: str) -> None:
    entry = paint(client, png("red"), half_mask(mode), seed="4", steps="2").json()["data"][0]
    assert all(value > 0 for value in entry["origin"][:8]) and entry["origin"][8:] == [-1] * 8


def test_in_painting_streams(client: TestClient) -> None:
    told = events(paint(client, png("red"), half_mask(), stream="true", steps="2").text)
    assert [event["type"] for event in told] == ["image_edit.partial_image", "image_edit.completed"]
    assert picture(told[0]).getchannel("A").crop((0, 4, 8, 8)).getextrema() == (255, 255)


@pytest.mark.parametrize(
    ("image", "mask", "told"),
    [
        (b"GIF89a", png("white"), "image: not a PNG, JPEG or WebP picture"),
        (png("red"), b"no picture", "mask: not a PNG, JPEG or WebP picture"),
        (png("red"), png("white")[:-30], "mask: not a readable picture"),
        (png("red", size=(9, 8)), png("white"), "image: is 9x8 pixels; this model needs 8x8"),
        (png("red"), png("white", size=(4, 4)), "mask: is 4x4 pixels; this model needs 8x8"),
        (png("red"), png("black"), "mask has no white place, so there is nothing to draw"),
    ],
)
def test_a_wrong_picture_or_mask_is_named(client: TestClient, image: bytes, mask: bytes, told: str) -> None:
    response = paint(client, image, mask)
    assert response.status_code == 400 and message(response).startswith(told)


def test_a_missing_mask_is_named(client: TestClient) -> None:
    response = client.post(EDIT, data={"prompt": "bag"}, files={"image": png("red")})
    assert (response.status_code, message(response)) == (400, "mask: Field required")


# Mistakes


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"prompt": ""}, "prompt: String should have at least 1 character"),
        ({"prompt": "  "}, "prompt: is empty; say what to draw"),
        ({"prompt": "x" * 1001}, "prompt: String should have at most 1000 characters"),
        ({"prompt": "sneakr"}, "prompt 'sneakr': not a class of tiny; did you mean 'Sneaker'?"),
        ({"prompt": "\ud800"}, "prompt: "),
        ({"prompt": ["bag"]}, "prompt: Input should be a valid string"),
        ({"n": 11}, "n: Input should be less than or equal to 10"),
        ({"n": True}, "n: Input should be a valid integer"),
        ({"size": "16x16"}, "size 16x16: at most as many pixels as 8x8"),
        ({"size": "7x8"}, "size 7x8: width and height must be multiples of 2"),
        ({"size": "huge"}, "size: String should match pattern"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"steps": 17}, "17 steps for 12 places: use at most 12 steps"),
        ({"ar_fraction": 1.5}, "ar_fraction: Input should be less than or equal to 1"),
        ({"method": "ar", "ar_fraction": 0.5}, "method ar fixes the AR fraction at 1"),
        ({"negative_prompt": "Sneaker"}, "negative_prompt: does nothing at guidance scale 1"),
        ({"stepz": 3}, "unknown field 'stepz'; did you mean 'steps'?"),
        ({"quality": "hd"}, "quality: Input should be 'auto' or 'standard'"),
        ({"output_compression": 50}, "output_compression: Input should be greater than or equal to 100"),
    ],
)
def test_a_mistake_is_one_line_in_openais_shape(client: TestClient, body: dict[str, Any], told: str) -> None:
    response = client.post(
        GENERATE, content=json.dumps({"prompt": "bag"} | body), headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert message(response).startswith(told)
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_mistake_that_only_the_models_find_keeps_its_status_in_a_stream(client: TestClient) -> None:
    response = draw(client, prompt="cat", stream=True)
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")


def test_what_is_no_json_or_no_route_gets_the_same_shape(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    assert message(client.post(GENERATE, content=b"{", headers=headers)).startswith("the body is not JSON")
    assert "expected a JSON object" in message(client.post(GENERATE, content=b"[]", headers=headers))
    assert "expected a JSON object" in message(client.post(GENERATE, content=b'{"prompt": "bag"}'))
    assert client.get("/v2").status_code == 404 and message(client.get("/v2")) == "there is nothing at /v2"
    wrong = client.get(GENERATE)
    assert (wrong.status_code, wrong.headers["allow"], message(wrong)) == (405, "POST", "GET is not for this path")


def test_another_model_is_404(client: TestClient) -> None:
    response = draw(client, model="dall-e-3")
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "model 'dall-e-3': this server has 'tiny'",
        "type": "invalid_request_error",
        "code": "model_not_found",
        "param": "model",
    }


def test_a_prompt_of_ten_megabytes_is_refused_unread(client: TestClient) -> None:
    response = draw(client, prompt="x" * 10_000_000)
    assert response.status_code == 413
    assert message(response) == "the request's body is larger than 64 KiB, the most that this path takes"


def test_a_body_of_unstated_length_is_counted(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    response = client.post(GENERATE, content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    upload = client.post(
        EDIT, content=(bytes(2**20) for _ in range(11)), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert (upload.status_code, "10240 KiB" in message(upload)) == (413, True)


# Load, token, end


def test_a_full_queue_is_429_with_retry_after(pipe: HybridPipeline) -> None:
    held = Held(pipe)
    with serving(held, queue=1) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(draw, client)
        held.wait_until_begun()
        second = pool.submit(draw, client)
        engine = client.app.state.engine  # type: ignore[attr-defined]
        while engine.load()[0] == 0:
            pass
        third = draw(client)
        held.let_go(2)
        assert (first.result().status_code, second.result().status_code, third.status_code) == (200, 200, 429)
    assert int(third.headers["retry-after"]) >= 1
    assert third.json()["error"]["type"] == "rate_limit_error" and third.json()["error"]["code"] == "queue_full"


def test_more_pictures_than_may_wait_are_a_mistake_that_the_limits_tell(pipe: HybridPipeline) -> None:
    with serving(pipe, queue=2) as client:
        (info,) = client.get("/v1/models").json()["data"]
        assert info["limits"] == {"prompt": 1000, "n": 2, "queue": 2}
        assert len(draw(client, n=2).json()["data"]) == 2
        refused = draw(client, n=3)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
    assert message(refused) == "3 pictures: must be 1 to 2"


def test_what_takes_too_long_is_504(pipe: HybridPipeline) -> None:
    with serving(pipe, deadline=1e-9) as client:
        late = draw(client)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")
    assert message(late) == "not finished within 1e-09 s; try again when less is waiting"


def test_a_token_guards_the_api_but_not_page_and_health(pipe: HybridPipeline) -> None:
    with serving(pipe, token="sésame") as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic sésame".encode()}):
            refused = client.post(GENERATE, json={"prompt": "bag"}, headers=headers)  # type: ignore[arg-type]
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert refused.json()["error"]["code"] == "invalid_token"
        assert [client.get(path).status_code for path in ("/v1/models", "/metrics")] == [401, 401]
        assert [client.get(path).status_code for path in ("/", "/health", "/openapi.json")] == [200] * 3
        headers = {"authorization": "bearer sésame".encode()}
        assert client.get("/v1/models", headers=headers).status_code == 200  # type: ignore[arg-type]
        described = client.get("/openapi.json").json()
        assert "HTTPBearer" in described["components"]["securitySchemes"]
        assert "401" in described["paths"][GENERATE]["post"]["responses"]


def test_a_prefix_changes_neither_token_nor_limits(pipe: HybridPipeline) -> None:
    with serving(pipe, token="sesame") as client:
        behind = TestClient(client.app, root_path="/draw")
        assert [behind.get(f"/draw{path}").status_code for path in ("/v1/models", "/metrics", "/health")] == [
            401,
            401,
            200,
        ]
        assert behind.post(f"/draw{GENERATE}", json={"prompt": "bag"}).status_code == 401
        headers = {"authorization": "Bearer sesame"}
        assert behind.get("/draw/v1/models", headers=headers).status_code == 200
        files = {"image": png("red"), "mask": half_mask() + bytes(200_000)}
        painted = behind.post(f"/draw{EDIT}", data={"prompt": "bag"}, files=files, headers=headers)
        assert painted.status_code == 200
        assert 'path="/v1/images/edits",status="200"' in behind.get("/draw/metrics", headers=headers).text


def test_a_stopping_server_refuses(pipe: HybridPipeline) -> None:
    with serving(pipe) as client:
        client.app.state.engine.stop_taking()  # type: ignore[attr-defined]
        refused = draw(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert message(refused) == "the server is shutting down"
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "stopping")


def test_a_mistake_of_ours_is_500_in_the_same_shape(pipe: HybridPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(pipe) as client:
        monkeypatch.setattr("hybrid.serve.app.describe", lambda _: 1 / 0)
        response = client.get("/v1/models")
    assert (response.status_code, message(response)) == (500, "a mistake of the server; its log says more")


# Description and speech


def test_the_description_tells_limits_and_errors(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/health", "/metrics", "/v1/models", GENERATE, EDIT, HEAR}
    for path in (GENERATE, EDIT):
        answers = described["paths"][path]["post"]["responses"]
        assert {"200", "400", "404", "413", "429", "503", "504", "4XX", "5XX"} == set(answers)
        assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    fields = described["components"]["schemas"]["ImageRequest"]["properties"]
    assert (fields["prompt"]["maxLength"], fields["n"]["anyOf"][0]["maximum"]) == (1000, 10)
    assert [name for name, field in fields.items() if {"type": "null"} not in field.get("anyOf", ())] == ["prompt"]
    form = described["components"]["schemas"]["EditRequest"]["properties"]
    assert (form["steps"]["type"], form["steps"]["maximum"], "null" in str(form)) == ("integer", 256, False)


def test_speech_without_its_extra_is_501(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hybrid.speech", None)
    response = client.post(HEAR, files={"file": b"RIFF"})
    assert response.status_code == 501
    assert message(response) == "no speech recognition here; install it with: pip install 'hybrid-imagegen[speech]'"


def test_speech_is_heard_by_the_speech_module(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    speech = types.ModuleType("hybrid.speech")

    def transcribe(recording: bytes) -> str:
        if recording != b"RIFF":
            raise ValueError("not a WAV or FLAC file")
        return "Draw me a sneakers."

    speech.transcribe = transcribe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hybrid.speech", speech)
    told = client.post(HEAR, files={"file": b"RIFF"}, data={"model": "any"}).json()
    assert told == {"text": "Draw me a sneakers.", "prompt": "Sneaker"}
    wrong = client.post(HEAR, files={"file": b"noise"})
    assert (wrong.status_code, message(wrong)) == (400, "not a WAV or FLAC file")


def test_recordings_wait_in_a_bounded_queue_and_leave_the_page_alone(
    pipe: HybridPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech = HeldSpeech(monkeypatch)
    with serving(pipe) as client, ThreadPoolExecutor(1 + WAITING) as pool:

        def say(place: int) -> Any:
            return client.post(HEAR, files={"file": bytes([place])})

        inside = [pool.submit(say, 0)]
        assert speech.begun.acquire(timeout=PATIENCE)
        inside += [pool.submit(say, place) for place in range(1, 1 + WAITING)]
        ears = client.app.state.ears  # type: ignore[attr-defined]
        until(lambda: ears.inside == 1 + WAITING, "a full queue")
        refused = say(99)
        assert client.get("/page/style.css").status_code == 200
        speech.go.release(1 + WAITING)
        told = [one.result().json() for one in inside]
    seconds = refused.headers["retry-after"]
    assert (refused.status_code, refused.json()["error"]["code"], int(seconds) >= 1) == (429, "queue_full", True)
    assert message(refused) == f"too many recordings are waiting; try again in {seconds} s"
    assert told == [{"text": "bag", "prompt": "Bag"}] * (1 + WAITING)
    assert sorted(speech.heard) == [bytes([place]) for place in range(1 + WAITING)]
