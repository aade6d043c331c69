// The server as OpenAI's JavaScript client meets it.
import assert from "node:assert/strict";
import { Server, check, dataUrl, item, pair, require } from "./server.mjs";

const OpenAI = require("openai").default;

const server = await Server.start();
const clientOf = (server, apiKey = "unused") =>
  new OpenAI({ baseURL: `${server.url}/v1`, apiKey, maxRetries: 0, timeout: 60_000 });
const client = clientOf(server);
const GREEDY = { model: "llava-shapes", temperature: 0 };

/** A question about pictures, which stand before it. */
const about = ({ question, files }) => [{
  role: "user",
  content: [
    ...files.map((file) => ({ type: "image_url", image_url: { url: dataUrl(file) } })),
    { type: "text", text: question },
  ],
}];
const shapes = item("shapes.jpg");
const hello = [{ role: "user", content: "Hello" }];
// Longer than anybody waits for: sixteen answers that only the context ends.
const LONG = { model: "llava-shapes", messages: hello, n: 16, ignore_eos: true };

await check("models are listed", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.deepEqual(names, ["llava-shapes"]);
});

await check("a whole answer is the demo's", async () => {
  const completion = await client.chat.completions.create({ ...GREEDY, messages: about(shapes) });
  assert.deepEqual([completion.choices[0].message.content, completion.choices[0].finish_reason], [shapes.answer, "stop"]);
  assert.equal(completion.usage.prompt_tokens_details.multimodal_tokens.image, 144);
});

await check("streamed answers are the demo's, many at once", async () => {
  const ask = async () => {
    const options = { stream: true, stream_options: { include_usage: true } };
    let text = "", usage;
    for await (const chunk of await client.chat.completions.create({ ...GREEDY, ...options, messages: about(shapes) })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.ok(usage.completion_tokens > 1);
    return text;
  };
  assert.deepEqual(await Promise.all(Array.from({ length: 8 }, ask)), Array(8).fill(shapes.answer));
});

await check("the client's own collector puts a stream together", async () => {
  const stream = client.chat.completions.stream({ ...GREEDY, messages: about(shapes) });
  assert.equal(await stream.finalContent(), shapes.answer);
});

await check("two pictures are compared", async () => {
  const comparing = await Server.start("demo/phi3v-shapes");
  const two = pair();
  const asked = { model: "phi3v-shapes", temperature: 0, messages: about(two) };
  const completion = await clientOf(comparing).chat.completions.create(asked);
  assert.equal(completion.choices[0].message.content, two.answer);
  await comparing.stop();
});

await check("several answers with their log-probabilities", async () => {
  const asked = { model: "llava-shapes", messages: about(shapes), n: 2, seed: 1, temperature: 0.01, logprobs: true };
  const { choices } = await client.chat.completions.create({ ...asked, top_logprobs: 2 });
  assert.deepEqual(choices.map(({ index, message }) => [index, message.content]), [[0, shapes.answer], [1, shapes.answer]]);
  assert.ok(choices.every(({ logprobs }) => logprobs.content.every((token) => token.top_logprobs.length === 2)));
});

await check("legacy completions, whole and streamed", async () => {
  const asked = { model: "llava-shapes", prompt: ["Hello", "How many"], max_tokens: 4, temperature: 0, logprobs: 1 };
  const { choices } = await client.completions.create(asked);
  assert.deepEqual(choices.map(({ index }) => index), [0, 1]);
  assert.ok(choices.every(({ logprobs }) => logprobs.tokens.length === logprobs.token_logprobs.length));
  const texts = ["", ""];
  for await (const chunk of await client.completions.create({ ...asked, stream: true })) {
    for (const { index, text } of chunk.choices) texts[index] += text;
  }
  assert.deepEqual(texts, choices.map(({ text }) => text));
});

await check("errors have their classes", async () => {
  const refused = (kind, code, asked) => assert.rejects(
    client.chat.completions.create(asked),
    (error) => error.constructor === OpenAI[kind] && error.code === code,
  );
  await refused("NotFoundError", "model_not_found", { model: "other", messages: hello });
  await refused("BadRequestError", "invalid_value", { ...GREEDY, messages: hello, temperature: 9 });
  const broken = [{ role: "user", content: [{ type: "image_url", image_url: { url: "data:image/png;base64,AAAA" } }] }];
  for (const stream of [false, true]) {
    await assert.rejects(client.chat.completions.create({ ...GREEDY, messages: broken, stream }), OpenAI.BadRequestError);
  }
  const closed = await Server.start("--api-key", "sesame");
  await assert.rejects(clientOf(closed, "sesam").models.list(), OpenAI.AuthenticationError);
  const completion = await clientOf(closed, "sesame").chat.completions.create({ ...GREEDY, messages: about(shapes) });
  assert.equal(completion.choices[0].message.content, shapes.answer);
  await closed.stop();
});

await check("a full server says when to try again", async () => {
  const small = await Server.start("--max-num-seqs", "1", "--max-waiting-requests", "1");
  const held = [new AbortController(), new AbortController()];
  const asked = held.map(({ signal }) =>
    clientOf(small).chat.completions.create({ ...LONG, stream: true }, { signal }).catch(() => undefined));
  await small.until("num_requests_in_server", 2);
  await assert.rejects(clientOf(small).chat.completions.create({ ...GREEDY, messages: hello }), (error) =>
    error instanceof OpenAI.RateLimitError && error.headers.get("retry-after") === "1");
  held.forEach((controller) => controller.abort());
  await Promise.all(asked);
  await small.until("num_requests_in_server", 0);
  await small.stop();
});

await check("leaving a stream cancels its request", async () => {
  const before = await server.metric("request_cancelled_total");
  for await (const chunk of await client.chat.completions.create({ ...LONG, stream: true })) {
    if (chunk.choices[0]?.delta.content) break;
  }
  await server.until("request_cancelled_total", before + 16);
  await server.until("num_requests_in_server", 0);
});

await check("a raw reply has its headers", async () => {
  const asked = client.chat.completions.create({ ...GREEDY, messages: hello }, { headers: { "x-request-id": "node-1" } });
  const { data, response, request_id } = await asked.withResponse();
  assert.equal(response.headers.get("content-type"), "application/json");
  assert.deepEqual([request_id, data.object], ["node-1", "chat.completion"]);
});

// Servers of checks that failed may run still.
process.exit();
