// A browser in which nothing may go wrong unseen: no request to another host, no error on the console, no breach of the
// page's policy.

import { spawn, execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

export const ROOT = join(dirname(fileURLToPath(import.meta.url)), "../..");
export const FLANC = process.env.FLANC ?? join(ROOT, "target/debug/flanc");
const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

export function flanc(...args) {
  return execFileSync(FLANC, args, { cwd: ROOT, encoding: "utf8", maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "inherit"] });
}

export function scratch() {
  const path = mkdtempSync(join(tmpdir(), "flanc-browser-"));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

// `flanc serve` with these arguments: its address, once it says it.
export async function serve(...args) {
  const child = spawn(FLANC, ["serve", "--rows", "20", ...args], { cwd: ROOT, stdio: ["ignore", "pipe", "inherit"] });
  const url = await new Promise((resolve, reject) => {
    child.stdout.setEncoding("utf8").once("data", (text) => resolve(text.trim()));
    child.once("exit", (code) => reject(new Error(`flanc serve ended with ${code}`)));
  });
  return { url, stop: () => new Promise((resolve) => {
    child.removeAllListeners("exit").once("exit", resolve);
    child.kill();
  }) };
}

export async function launch() {
  const executablePath = process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
  // As root, chromium refuses to start its sandbox.
  return chromium.launch({ executablePath, args: process.getuid?.() === 0 ? ["--no-sandbox"] : [] });
}

// A page at `url`. What it does wrong is in `problems`; `close()` fails if there is anything.
export async function open(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
  const page = await context.newPage();
  const problems = [];
  const allowed = new URL(url);
  await context.route("**/*", (route) => {
    const to = new URL(route.request().url());
    const own = to.protocol === "data:" || to.protocol === "blob:" || (to.protocol === allowed.protocol && to.host === allowed.host);
    if (own) return route.continue();
    problems.push(`a request to ${to.href}`);
    return route.abort();
  });
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !page.expected?.test(message.text())) problems.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`error: ${error.stack}`));
  page.on("dialog", (dialog) => dialog.accept());
  await page.addInitScript(() => {
    window.breaches = [];
    document.addEventListener("securitypolicyviolation", (event) => window.breaches.push(`${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.goto(url);
  return { page, context, problems, async close() {
    problems.push(...(await page.evaluate(() => window.breaches)));
    assert.equal(await page.evaluate(() => window.harm), undefined, "a row ran as a script");
    await context.close();
    assert.deepEqual(problems, []);
  } };
}

// Until the page is at a place and has drawn what is there.
export async function arrived(page, place) {
  await page.waitForFunction((wanted) => decodeURIComponent(location.hash) === wanted, place);
  await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn))));
}

// That axe finds nothing serious. It is put beside the page by the browser itself, whatever the page's policy says.
export async function accessible(page, what) {
  await page.evaluate(readFileSync(AXE, "utf8"));
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const told = serious.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 4).map((node) => `${node.target.join(" ")} (${node.failureSummary})`).join("; ")}`);
  assert.deepEqual(told, [], what);
}
