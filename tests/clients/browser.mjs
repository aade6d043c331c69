// Chromium with a watch over what its pages ask for and what their policy stops.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { require } from "./server.mjs";

const { chromium } = require("playwright-core");

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
  // Whatever else it might look for, it does not find.
  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

export class Browser {
  static async start() {
    const data = mkdtempSync(join(tmpdir(), "ocelli-chromium-"));
    const context = await chromium.launchPersistentContext(data, {
      executablePath: process.env.OCELLI_CHROMIUM,
      args: FLAGS,
      viewport: { width: 1200, height: 800 },
      permissions: ["clipboard-read", "clipboard-write"],
    });
    context.setDefaultTimeout(30_000);
    return Object.assign(new Browser(), { context, data });
  }

  /** Open the page of a server, in a tab that knows nothing of others. */
  async open(url) {
    const page = await this.context.newPage();
    const visit = Object.assign(new Visit(), { page, url, seen: [], foreign: [], violations: [] });
    page.on("request", (request) => visit.saw(request));
    page.on("console", (message) => {
      if (/Content Security Policy|Trusted(HTML|Script)/.test(message.text())) visit.violations.push(message.text());
    });
    page.on("pageerror", (error) => visit.violations.push(String(error)));
    page.on("dialog", (dialog) => {
      visit.violations.push(`the page opened ${dialog.type()}`);
      dialog.dismiss();
    });
    await page.goto(url);
    return visit;
  }

  async close() {
    await this.context.close();
    rmSync(this.data, { recursive: true, force: true });
  }
}

class Visit {
  saw(request) {
    const { protocol, origin } = new URL(request.url());
    if (origin !== this.url && !["blob:", "data:"].includes(protocol)) this.foreign.push(request.url());
    if (request.url().endsWith("/v1/chat/completions")) this.seen.push(request);
  }

  /** Bodies of the questions so far. */
  asked() {
    return this.seen.map((request) => request.postDataJSON());
  }

  /** Drop files onto the page as an operating system does. */
  async drop(...files) {
    const session = await this.page.context().newCDPSession(this.page);
    const data = { items: [], files: files.map((file) => resolve(file)), dragOperationsMask: 1 };
    for (const type of ["dragEnter", "dragOver", "drop"]) {
      await session.send("Input.dispatchDragEvent", { type, x: 100, y: 200, data });
    }
    await session.detach();
  }

  async ask(question) {
    await this.page.getByLabel("Your question").fill(question);
    await this.page.keyboard.press("Enter");
  }

  /** The text of the answer at a place, once it is complete. */
  async answer(index = 0) {
    const turn = this.page.locator(".turn").nth(index);
    await turn.locator(".answer[aria-busy=false]").waitFor({ state: "attached" });
    return turn.locator(".answer").textContent();
  }

  /** Settings by their labels. */
  async set(values) {
    await this.page.getByRole("button", { name: "Settings" }).click();
    for (const [label, value] of Object.entries(values)) await this.page.getByLabel(label, { exact: true }).fill(value);
    await this.page.getByRole("button", { name: "Close" }).click();
  }

  /** Answer questions in the server's place. */
  async pretend(status, type, body) {
    await this.page.route("**/v1/chat/completions", (route) => route.fulfill({ status, contentType: type, body }));
  }

  /** Nothing left the server, and the policy had nothing to stop. */
  async close() {
    assert.deepEqual([this.foreign, this.violations], [[], []]);
    await this.page.close();
  }
}
