// The page of `ocelli bench report` as a reader meets it, in Chromium: both themes, a desk and a telephone.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Browser } from "./browser.mjs";
import { check } from "./server.mjs";

const PLANTED = "</title><script>document.title = 'planted'</script>";

/** A record of a server's bench, whose times are so many milliseconds. */
function record(concurrency, ms) {
  const figure = (what, unit, better, value) => ({
    what, unit, better, mean: value, median: value, std: 0, p90: value, p99: 1.5 * value, min: value, max: 1.5 * value,
    samples: 5, repeats: [0.99, 0.995, 1, 1.005, 1.01].map((share) => share * value), ceiling_percent: null,
  });
  return {
    bench: "serve", version: "0.1.0", date: "2026-11-22T22:00:00Z", command: "ocelli bench serve", gpu: "NVIDIA H200",
    driver: "580.159.04 (CUDA 13.0)", backend: "openai-chat", model: PLANTED, dtype: "bf16", load_format: "dummy",
    ceilings: null,
    input: {
      prompt_tokens: 645, image_tokens: null, output_tokens: 128, pictures: ["640x480"], requests: 256, concurrency,
      request_rate: null, seed: 0, repeats: 5, warmup: 0,
    },
    figures: {
      ttft_ms: figure("first token", "ms", "lower", ms),
      tpot_ms: figure("every token after it", "ms", "lower", ms / 10),
      request_throughput: figure("requests", "req/s", "higher", (1000 * concurrency) / ms),
    },
  };
}

const folder = mkdtempSync(join(tmpdir(), "ocelli-report-"));
const earlier = mkdtempSync(join(tmpdir(), "ocelli-report-"));
copyFileSync("tests/report/run/trace.json", join(folder, "trace.json"));
for (const n of [1, 16, 64]) {
  writeFileSync(join(folder, `serve-${n}.json`), JSON.stringify(record(n, 20 * n)));
  writeFileSync(join(earlier, `serve-${n}.json`), JSON.stringify(record(n, 22 * n)));
}
writeFileSync(join(folder, "half.json"), '{"bench": "serve"');
execFileSync(process.env.OCELLI_BIN, ["bench", "report", folder, "--compare", earlier], { stdio: ["ignore", "ignore", "ignore"] });

const browser = await Browser.start();

/** Open the page, look at it, and hold it to asking nobody for anything. */
async function look(colorScheme, width, body) {
  const page = await browser.context.newPage();
  const asked = [];
  page.on("request", (request) => asked.push(request.url()));
  page.on("console", (message) => asked.push(message.text()));
  await page.emulateMedia({ colorScheme });
  await page.setViewportSize({ width, height: 900 });
  await page.goto(`file://${join(folder, "report.html")}`);
  await body(page);
  assert.deepEqual(asked, [`file://${join(folder, "report.html")}`]);
  await page.close();
}

for (const scheme of ["light", "dark"]) {
  for (const width of [1280, 390]) {
    await check(`the report fits ${width} pixels, ${scheme}`, () => look(scheme, width, async (page) => {
      const seen = await page.evaluate(() => ({
        sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        drawings: [...document.querySelectorAll("figure")].map((figure) => {
          const shown = [...figure.querySelectorAll(":scope > svg")].filter((svg) => svg.getBoundingClientRect().width > 0);
          return shown.length;
        }),
        // Labels beside marks as this browser draws them, but for the room of an accent above and below.
        meeting: [...document.querySelectorAll("svg")].flatMap((svg) => {
          const boxes = [...svg.querySelectorAll("text.label")].map((text) => [text.textContent, text.getBoundingClientRect()]);
          const meet = (a, b) => a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom;
          const shown = boxes.filter(([, box]) => box.width > 0);
          return shown.flatMap(([name, a], i) => shown.slice(i + 1).filter(([, b]) => meet(a, b)).map(([other]) => `${name} ${other}`));
        }),
      }));
      assert.equal(seen.sideways, 0);
      assert.ok(seen.drawings.length >= 6 && seen.drawings.every((n) => n === 1), `${seen.drawings}`);
      assert.deepEqual(seen.meeting, []);
    }));
  }
  await check(`colours of the report can be read, ${scheme}`, () => look(scheme, 1280, async (page) => {
    const colours = await page.evaluate(() => {
      const style = getComputedStyle(document.documentElement);
      const names = ["ground", "surface", "ink", "muted", "on", "gemm", "gemv", "paged", "dense", "norm", "rope", "pixels", "rest", "host"];
      const probe = document.createElement("i");
      document.body.append(probe);
      return Object.fromEntries(names.map((name) => {
        probe.style.color = style.getPropertyValue(`--${name}`);
        return [name, getComputedStyle(probe).color.match(/\d+/g).slice(0, 3).map(Number)];
      }));
    });
    const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const { ground, surface, ink, muted, on, ...parts } = colours;
    assert.equal(light(ground) > 0.5, scheme === "light");
    // What WCAG asks of text: labels have the colours of their marks, and names stand in parts of bars.
    for (const [name, colour] of Object.entries({ ink, muted, ...parts })) {
      for (const under of [surface, ground]) assert.ok(contrast(colour, under) >= 4.5, `${name}: ${contrast(colour, under)}`);
    }
    for (const [name, colour] of Object.entries(parts)) assert.ok(contrast(colour, on) >= 4.5, `on ${name}: ${contrast(colour, on)}`);
  }));
}

await check("what a file says stays text in the report, and a broken file is named", () => look("light", 1280, async (page) => {
  assert.equal(await page.evaluate(() => document.scripts.length), 0);
  assert.match(await page.title(), /^ocelli bench report/);
  assert.ok((await page.locator("h1").textContent()).includes(PLANTED));
  assert.match(await page.locator("section").last().textContent(), /half\.json.*no JSON object/);
  assert.match(await page.locator("svg.wide").filter({ hasText: "faster" }).first().textContent(), /9 figures 0 are slower and 9 faster/);
}));

await browser.close();
for (const made of [folder, earlier]) rmSync(made, { recursive: true });
