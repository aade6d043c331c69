// A server as a process, checks that are printed as they end, and the demo's pictures with their answers.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as pause } from "node:timers/promises";

// Packages lie where tools/test-clients put them, outside the tree.
export const require = createRequire(`${process.env.OCELLI_CLIENTS}/`);

const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("OCELLI_")));

export class Server {
  static async start(...args) {
    const child = spawn(process.env.OCELLI_BIN, ["serve", ...args, "--device", "cpu", "--port", "0"], {
      env: environment,
      stdio: ["ignore", "ignore", "pipe"],
    });
    process.on("exit", () => child.kill("SIGKILL"));
    child.stderr.setEncoding("utf8");
    let log = "";
    for await (const text of child.stderr.iterator({ destroyOnReturn: false })) {
      log += text;
      const found = log.match(/listening at (http:\/\/127\.0\.0\.1:\d+)/);
      if (found) {
        // Read on: a server whose log is full would stand still.
        child.stderr.resume();
        return Object.assign(new Server(), { child, url: found[1] });
      }
    }
    throw new Error(`the server ended before it listened: ${log}`);
  }

  async metric(name) {
    const text = await (await fetch(`${this.url}/metrics`)).text();
    const line = text.split("\n").find((line) => line.startsWith(`ocelli:${name}{`));
    return Number(line.slice(line.lastIndexOf(" ") + 1));
  }

  /** Wait until a metric has a value. */
  async until(name, value) {
    for (const end = Date.now() + 20_000; (await this.metric(name)) !== value; await pause(20)) {
      if (Date.now() > end) throw new Error(`${name} is ${await this.metric(name)} and not ${value}`);
    }
  }

  async stop() {
    const ended = new Promise((resolve) => this.child.once("exit", resolve));
    this.child.kill("SIGKILL");
    await ended;
  }
}

/** Run a check and print how it ended. */
export async function check(name, body) {
  try {
    await body();
    console.log(`ok      ${name}`);
  } catch (error) {
    console.log(`FAILED  ${name}: ${error.stack ?? error}`);
    process.exitCode = 1;
  }
}

const read = (folder) => JSON.parse(readFileSync(`demo/${folder}/expected.json`)).items;

/** An item of the demo: { question, answer, files }. */
export function item(file) {
  const { question, answer } = read("images").find((one) => one.file === file);
  return { question, answer, files: [`demo/images/${file}`] };
}

/** The question about two pictures, for the demo that compares. */
export function pair() {
  const { question, answer, pictures } = read("pairs").find((one) => one.pictures.length === 2);
  return { question, answer, files: pictures.map((name) => `demo/pairs/${name}`) };
}

export function dataUrl(file) {
  return `data:image/${file.endsWith("png") ? "png" : "jpeg"};base64,${readFileSync(file, "base64")}`;
}
