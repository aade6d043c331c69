// The page at / as a reader meets it, in Chromium.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { Browser } from "./browser.mjs";
import { Server, check, item, pair, require } from "./server.mjs";

const browser = await Browser.start();
const server = await Server.start();
const shapes = item("shapes.jpg");
const EVENTS = "text/event-stream";

/** What a server would stream; without its end, a stream that broke off. */
function events(...pieces) {
  const chunks = pieces.map((content) => ({ choices: [{ index: 0, delta: { content }, finish_reason: null }] }));
  return chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("");
}

const USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\ndata: [DONE]\n\n';

await check("a picture is dropped, and the right answer appears with its figures", async () => {
  const visit = await browser.open(server.url);
  await visit.drop(...shapes.files);
  await visit.page.getByRole("img", { name: "shapes.jpg" }).waitFor();
  await visit.ask(shapes.question);
  assert.equal(await visit.answer(), shapes.answer);
  const figures = await visit.page.locator(".figures").textContent();
  assert.match(figures, /first token after [\d.]+ m?s.*[\d.]+ tokens\/s.*158 prompt tokens, 144 of pictures.*16 answered/s);
  await visit.close();
});

await check("a second question carries the first, its picture and its answer", async () => {
  const visit = await browser.open(server.url);
  await visit.drop(...shapes.files);
  await visit.ask(shapes.question);
  await visit.answer();
  await visit.ask("How many stars are there?");
  assert.match(await visit.answer(1), /stars/);
  const { messages } = visit.asked()[1];
  assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "user"]);
  assert.equal(messages[0].content[0].image_url.url, `data:image/jpeg;base64,${readFileSync(shapes.files[0], "base64")}`);
  assert.equal(messages[1].content, shapes.answer);
  await visit.page.getByRole("button", { name: "New chat" }).click();
  assert.equal(await visit.page.locator(".turn").count(), 0);
  await visit.ask("Hello");
  await visit.answer();
  assert.equal(visit.asked()[2].messages.length, 1);
  await visit.close();
});

await check("two pictures of one question are compared", async () => {
  const comparing = await Server.start("demo/phi3v-shapes");
  const two = pair();
  const visit = await browser.open(comparing.url);
  await visit.drop(...two.files);
  await visit.ask(two.question);
  assert.equal(await visit.answer(), two.answer);
  await visit.close();
  await comparing.stop();
});

await check("a picture is pasted", async () => {
  const heart = item("green-heart.png");
  const visit = await browser.open(server.url);
  await visit.page.evaluate(async (base64) => {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    await navigator.clipboard.write([new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) })]);
  }, readFileSync(heart.files[0], "base64"));
  await visit.page.getByLabel("Your question").focus();
  await visit.page.keyboard.press("Control+V");
  await visit.page.locator("#chosen img").waitFor();
  await visit.ask(heart.question);
  assert.equal(await visit.answer(), heart.answer);
  await visit.close();
});

await check("the keyboard is enough, and shows where it is", async () => {
  const visit = await browser.open(server.url);
  const { page } = visit;
  const here = () => page.evaluate(() => {
    const at = document.activeElement;
    const shown = getComputedStyle(at).outlineStyle !== "none" || at.closest("#composer:focus-within") !== null;
    return [at.ariaLabel ?? at.labels?.[0]?.textContent ?? at.textContent, shown];
  });
  assert.deepEqual(await here(), ["Your question", true]);
  const [chooser] = await Promise.all([page.waitForEvent("filechooser"), (async () => {
    await page.keyboard.press("Tab");
    assert.deepEqual(await here(), ["Add pictures", true]);
    await page.keyboard.press("Enter");
  })()]);
  assert.ok(chooser.isMultiple());
  await chooser.setFiles(["demo/images/cat.jpg", ...shapes.files]);
  await page.getByRole("img", { name: "shapes.jpg" }).waitFor();
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Shift+Tab");
  assert.deepEqual(await here(), ["Remove cat.jpg", true]);
  await page.keyboard.press("Enter");
  assert.deepEqual(await here(), ["Remove shapes.jpg", true]);
  await page.keyboard.press("Tab");
  await page.keyboard.type("What is in");
  await page.keyboard.press("Shift+Enter");
  assert.equal(await page.getByLabel("Your question").inputValue(), "What is in\n");
  await page.keyboard.press("Backspace");
  await page.keyboard.type(" this picture?");
  await page.keyboard.press("Enter");
  assert.equal(await visit.answer(), shapes.answer);
  const walked = [];
  for (const key of ["Tab", "Tab", "Tab", "Tab"]) {
    await page.keyboard.press(key);
    walked.push(await here());
    if (walked.at(-1)[0] === "Settings") break;
  }
  assert.deepEqual(walked.slice(-2), [["New chat", true], ["Settings", true]]);
  await page.keyboard.press("Enter");
  assert.deepEqual(await here(), ["Temperature", true]);
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("dialog").isVisible(), false);
  assert.deepEqual(await here(), ["Settings", true]);
  await visit.close();
});

await check("settings are sent, and those that are not set are not", async () => {
  const visit = await browser.open(server.url);
  await visit.ask("Hello");
  await visit.answer();
  const { messages, ...plain } = visit.asked()[0];
  const always = { stream: true, stream_options: { include_usage: true }, return_timings: true };
  assert.deepEqual(plain, { ...always, model: "llava-shapes" });
  await visit.set({ Temperature: "0.25", "Top p": "0.5", "Most tokens": "3", Seed: "11", "System text": "Be brief." });
  await visit.ask("Hello again");
  await visit.answer(1);
  const { messages: said, ...set } = visit.asked()[1];
  assert.deepEqual(set, { ...plain, temperature: 0.25, top_p: 0.5, max_tokens: 3, seed: 11 });
  assert.deepEqual(said[0], { role: "system", content: "Be brief." });
  assert.match(await visit.page.locator(".figures").nth(1).textContent(), /cut at its limit/);
  await visit.close();
});

for (const [how, stop] of [
  ["Esc", (page) => page.keyboard.press("Escape")],
  ["the button", (page) => page.getByRole("button", { name: "Stop" }).click()],
]) {
  await check(`${how} stops an answer, and the server its request`, async () => {
    const visit = await browser.open(server.url);
    const before = await server.metric("request_cancelled_total");
    // Sixteen answers as long as they can be: no machine has them before somebody can stop.
    await visit.page.route("**/v1/chat/completions", (route) =>
      route.continue({ postData: JSON.stringify({ ...route.request().postDataJSON(), ignore_eos: true, n: 16 }) }));
    await visit.ask("Hello");
    await visit.page.waitForFunction(() => document.querySelector(".answer").textContent.length > 20);
    await stop(visit.page);
    const text = await visit.answer();
    await server.until("request_cancelled_total", before + 16);
    await server.until("num_requests_in_server", 0);
    assert.match(await visit.page.locator(".figures").textContent(), /stopped/);
    await visit.page.unroute("**/v1/chat/completions");
    await visit.ask("Go on");
    await visit.answer(1);
    assert.equal(visit.asked()[1].messages[1].content, text);
    await visit.close();
  });
}

await check("the server's error is shown, and the question can be asked again", async () => {
  const visit = await browser.open(server.url);
  await visit.set({ Temperature: "9" });
  await visit.drop(...shapes.files);
  await visit.ask(shapes.question);
  await visit.answer();
  assert.match(await visit.page.locator(".turn [role=alert]").textContent(), /^temperature is 9.*; it must lie in 0 to 2$/);
  await visit.set({ Temperature: "0" });
  await visit.page.getByRole("button", { name: "Send" }).click();
  await visit.page.getByText(shapes.answer).waitFor();
  assert.equal(await visit.page.locator(".turn").count(), 1);
  assert.equal(visit.asked()[1].messages.length, 1);
  await visit.close();
});

await check("an answer that breaks off is not taken for a whole one", async () => {
  for (const [body, error] of [
    [events("half an"), /broke off/],
    [`${events("half an")}data: {"error":{"message":"the model gave no number"}}\n\n`, /^the model gave no number$/],
  ]) {
    const visit = await browser.open(server.url);
    await visit.pretend(200, EVENTS, body);
    await visit.ask("Hello");
    assert.equal(await visit.answer(), "half an");
    assert.match(await visit.page.locator(".turn [role=alert]").textContent(), error);
    await visit.close();
  }
});

await check("a server that is gone is said to be", async () => {
  const gone = await Server.start();
  const visit = await browser.open(gone.url);
  await visit.page.waitForFunction(() => document.querySelector("#model").value);
  await gone.stop();
  await visit.ask("Hello");
  await visit.answer();
  assert.match(await visit.page.locator(".turn [role=alert]").textContent(), /cannot be reached/);
  await visit.close();
});

await check("a wrong key is shown, a right one works and stays in its tab", async () => {
  const closed = await Server.start("--api-key", "sesame");
  const visit = await browser.open(closed.url);
  const { page } = visit;
  const note = (text) => page.locator("#key-note").filter({ hasText: text }).waitFor();
  await note("the key is missing or wrong");
  await page.getByLabel("API key").fill("sesam");
  await page.keyboard.press("Tab");
  await note("the key is missing or wrong");
  await page.getByLabel("API key").fill("sesame");
  await page.keyboard.press("Tab");
  await note("The server takes this key.");
  await page.getByRole("button", { name: "Close" }).click();
  await page.reload();
  await page.waitForFunction(() => document.querySelector("#model").value);
  await visit.drop(...shapes.files);
  await visit.ask(shapes.question);
  assert.equal(await visit.answer(), shapes.answer);
  assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0);
  await visit.close();
  const other = await browser.open(closed.url);
  await other.page.locator("#key-note").filter({ hasText: "missing or wrong" }).waitFor();
  await other.close();
  await closed.stop();
});

await check("what is too large for the server, or no picture, is not sent", async () => {
  const small = await Server.start("--max-body-bytes", "20000");
  const visit = await browser.open(small.url);
  const notice = visit.page.getByRole("alert");
  await visit.drop("demo/images/plane.png", "README.md");
  await notice.filter({ hasText: "README.md is no picture." }).waitFor();
  assert.equal(await visit.page.locator("#chosen img").count(), 1);
  await visit.ask("x".repeat(20_000));
  await notice.filter({ hasText: "--max-body-bytes" }).waitFor();
  assert.equal(visit.seen.length, 0);
  await visit.page.getByRole("button", { name: "Remove plane.png" }).click();
  await visit.drop("demo/llava-shapes/model.safetensors");
  await notice.filter({ hasText: "is no picture" }).waitFor();
  await visit.page.locator("#files").setInputFiles({ name: "huge.png", mimeType: "image/png", buffer: Buffer.alloc(15_001) });
  await notice.filter({ hasText: "huge.png has 0.0 MB" }).waitFor();
  assert.equal(await visit.page.locator("#chosen img").count(), 0);
  await visit.close();
  await small.stop();
});

await check("text stays text, on both sides", async () => {
  const visit = await browser.open(server.url);
  const hostile = '<script>alert(1)</script><img src=x onerror=alert(2)> ![a](https://example.org/a.png) **b**';
  await visit.pretend(200, EVENTS, events(...hostile.match(/.{1,7}/gs)) + USAGE);
  await visit.ask(hostile);
  assert.equal(await visit.answer(), hostile);
  assert.equal(await visit.page.locator(".said").textContent(), hostile);
  assert.equal(await visit.page.locator(".turn :is(script, img, b, a)").count(), 0);
  await visit.close();
});

await check("an error is text, too", async () => {
  const visit = await browser.open(server.url);
  const hostile = "<img src=x onerror=alert(1)>";
  await visit.pretend(500, "application/json", JSON.stringify({ error: { message: hostile } }));
  await visit.ask("Hello");
  await visit.answer();
  assert.equal(await visit.page.locator(".turn [role=alert]").textContent(), hostile);
  await visit.close();
});

await check("axe finds nothing, in light and dark, narrow and wide", async () => {
  const { source } = require("axe-core");
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [360, 1200]) {
      const visit = await browser.open(server.url);
      await visit.page.setViewportSize({ width, height: 720 });
      await visit.page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      const found = async (state) => {
        const { violations } = await visit.page.evaluate(() => globalThis.axe.run());
        const named = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
        assert.deepEqual(named, [], `${state}, ${colorScheme}, ${width}`);
        const overflow = await visit.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(overflow <= 0, `${state} is ${overflow} px too wide at ${width}`);
      };
      await visit.page.evaluate(source);
      await found("welcome");
      await visit.drop(...shapes.files);
      await visit.ask(shapes.question);
      await visit.answer();
      await visit.set({ Temperature: "9" });
      await visit.drop(...shapes.files);
      await visit.ask("w".repeat(300));
      await visit.answer(1);
      await found("conversation");
      await visit.page.getByRole("button", { name: "Settings" }).click();
      await found("settings");
      await visit.close();
    }
  }
});

await check("the watch sees what it watches for", async () => {
  const visit = await browser.open(server.url);
  await visit.page.evaluate(() => {
    new Image().src = "https://example.org/a.png";
    try { document.body.setAttribute("onclick", "alert(1)"); } catch {}
    try { document.body.innerHTML = "<p>"; } catch {}
  });
  for (const what of [/img-src/, /TrustedScript/, /TrustedHTML/]) {
    assert.ok(visit.violations.some((text) => what.test(text)), `${what}: ${visit.violations.join("\n")}`);
  }
  await visit.page.goto("http://127.0.0.1:9/").catch(() => {});
  assert.deepEqual(visit.foreign.slice(-1), ["http://127.0.0.1:9/"]);
  await visit.page.close();
});

await browser.close();
// Servers of checks that failed may run still.
process.exit();
