"""The server as OpenAI's Python client meets it."""

import asyncio

import openai
from openai import AsyncOpenAI, OpenAI

from server import Server, check, end, items, message, pairs

server = Server()
GREEDY = {"model": "llava-shapes", "temperature": 0}
# Longer than anybody waits for: sixteen answers that only the context ends.
LONG = {"model": "llava-shapes", "messages": message("Hello"), "n": 16, "extra_body": {"ignore_eos": True}}


def client_of(server, kind=OpenAI, key="unused"):
    return kind(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


client = client_of(server)


def refused(kind, ask):
    """The error of a class that a request must end with."""
    try:
        ask()
    except kind as error:
        assert type(error) is kind, type(error)
        return error
    raise AssertionError(f"no {kind.__name__}")


def models():
    assert [model.id for model in client.models.list()] == ["llava-shapes"]
    assert client.models.retrieve("llava-shapes").id == "llava-shapes"
    refused(openai.NotFoundError, lambda: client.models.retrieve("other"))


def whole():
    for answer, messages in items(10):
        completion = client.chat.completions.create(messages=messages, **GREEDY)
        choice = completion.choices[0]
        assert (choice.message.content, choice.finish_reason) == (answer, "stop"), choice
        assert choice.message.role == "assistant" and completion.object == "chat.completion"
        usage = completion.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.prompt_tokens_details.multimodal_tokens == {"image": 144}


def streamed():
    for answer, messages in items(5):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(messages=messages, **GREEDY, **options))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == answer
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens > 1


def collected():
    answer, messages = items(1)[0]
    with client.chat.completions.stream(messages=messages, **GREEDY) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
    final = stream.get_final_completion().choices[0]
    assert (text, final.message.content, final.finish_reason) == (answer, answer, "stop")


async def at_once():
    async with client_of(server, AsyncOpenAI) as client:

        async def ask(messages, stream):
            if not stream:
                completion = await client.chat.completions.create(messages=messages, **GREEDY)
                return completion.choices[0].message.content
            chunks = await client.chat.completions.create(messages=messages, stream=True, **GREEDY)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

        asked = items(16)
        texts = await asyncio.gather(*(ask(messages, i % 2 == 0) for i, (_, messages) in enumerate(asked)))
        assert texts == [answer for answer, _ in asked], texts


def two_pictures():
    comparing = Server("demo/phi3v-shapes")
    for answer, messages in pairs(3):
        completion = client_of(comparing).chat.completions.create(model="phi3v-shapes", messages=messages, temperature=0)
        assert completion.choices[0].message.content == answer, completion
    comparing.stop()


def several_answers():
    answer, messages = items(1)[0]
    completion = client.chat.completions.create(model="llava-shapes", messages=messages, n=3, seed=1, temperature=0.01)
    assert [(choice.index, choice.message.content) for choice in completion.choices] == [(i, answer) for i in range(3)]


def log_probabilities():
    answer, messages = items(1)[0]
    completion = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **GREEDY)
    tokens = completion.choices[0].logprobs.content
    assert len(tokens) == completion.usage.completion_tokens
    assert b"".join(bytes(token.bytes) for token in tokens).decode().removesuffix("</s>").strip() == answer
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 2
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"


def legacy():
    asked = {"model": "llava-shapes", "prompt": ["Hello", "How many"], "max_tokens": 4, "temperature": 0, "logprobs": 1}
    choices = client.completions.create(**asked).choices
    assert [choice.index for choice in choices] == [0, 1]
    assert all(len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) for choice in choices)
    texts = ["", ""]
    for chunk in client.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in choices], texts


def raw():
    answer, messages = items(1)[0]
    reply = client.chat.completions.with_raw_response.create(messages=messages, **GREEDY)
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/json"
    assert reply.parse().choices[0].message.content == answer
    reply = client.chat.completions.with_raw_response.create(messages=messages, stream=True, **GREEDY)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in reply.parse()) == answer


def errors():
    create = client.chat.completions.create
    error = refused(openai.NotFoundError, lambda: create(model="other", messages=message("Hello")))
    assert error.code == "model_not_found" and "other" in error.message, error
    error = refused(openai.BadRequestError, lambda: create(messages=message("Hello"), **{**GREEDY, "temperature": 9}))
    assert error.param == "temperature" and "0 to 2" in error.message, error
    broken = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
    for stream in [False, True]:
        error = refused(openai.BadRequestError, lambda: create(messages=broken, stream=stream, **GREEDY))
        assert error.type == "invalid_request_error", error


def keys():
    closed = Server("--api-key", "sesame")
    error = refused(openai.AuthenticationError, lambda: client_of(closed, key="sesam").models.list())
    assert error.code == "invalid_api_key", error
    answer, messages = items(1)[0]
    completion = client_of(closed, key="sesame").chat.completions.create(messages=messages, **GREEDY)
    assert completion.choices[0].message.content == answer
    closed.stop()


async def full():
    small = Server("--max-num-seqs", "1", "--max-waiting-requests", "1")
    async with client_of(small, AsyncOpenAI) as client:
        create = client.chat.completions.create
        held = [asyncio.create_task(create(stream=True, **LONG)) for _ in range(2)]
        # The second waits for its first token, so only the server knows that it is there.
        await asyncio.to_thread(small.until, "num_requests_in_server", 2)
        try:
            await create(messages=message("Hello"), **GREEDY)
            raise AssertionError("no RateLimitError")
        except openai.RateLimitError as error:
            assert (error.code, error.response.headers["retry-after"]) == ("queue_full", "1"), error
        for task in held:
            task.cancel()
    await asyncio.to_thread(small.until, "num_requests_in_server", 0)
    small.stop()


def closed_streams():
    before = server.metric("request_cancelled_total")
    stream = client.chat.completions.create(stream=True, **LONG)
    for _ in range(20):
        next(stream)
    stream.close()
    server.until("request_cancelled_total", before + 16)
    with client.chat.completions.create(stream=True, **LONG) as stream:
        next(stream)
    server.until("request_cancelled_total", before + 32)
    server.until("num_requests_in_server", 0)


for name, body in [
    ("models are listed", models),
    ("whole answers are the demo's", whole),
    ("streamed answers are the demo's", streamed),
    ("the client's own collector puts a stream together", collected),
    ("sixteen at once, async, streamed and whole", at_once),
    ("two pictures are compared", two_pictures),
    ("several answers", several_answers),
    ("log-probabilities are those of the answer", log_probabilities),
    ("legacy completions, whole and streamed", legacy),
    ("raw replies have their headers", raw),
    ("400 and 404 are the client's classes", errors),
    ("401 is the client's class, and the key opens", keys),
    ("429 is the client's class", full),
    ("a closed stream ends its request", closed_streams),
]:
    check(name, body)
end()
