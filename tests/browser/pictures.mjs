// The pictures of the README, made of the bundled sample: `node tests/browser/pictures.mjs`. With `--check` it says
// whether they are of today's page: what they were made of is written down beside them.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "../..");
const PICTURES = join(ROOT, "docs/pictures");
const MADE_OF = join(PICTURES, "made-of.txt");
// A picture in a README should not be waited for.
const LARGEST = 150_000;

// All that the pages are made of, and what they show.
function madeOf() {
  const hash = createHash("sha256");
  const of = ["src/preview/assets", "src/serve/assets"].flatMap((folder) => readdirSync(join(ROOT, folder)).sort().map((name) => join(folder, name)));
  for (const file of [...of, "template-defs/natural-language-inference/rte.toml", "data/rows/super_glue.rte.jsonl", "tests/browser/pictures.mjs"]) {
    hash.update(file).update("\0").update(readFileSync(join(ROOT, file))).update("\0");
  }
  return `sha256 of the page's files: ${hash.digest("hex")}\n`;
}

if (process.argv.includes("--check")) {
  if (readFileSync(MADE_OF, "utf8") !== madeOf()) {
    console.error("docs/pictures are of another page: run `node tests/browser/pictures.mjs`, look at them, and commit them");
    process.exit(1);
  }
  process.exit(0);
}

const { launch, open, serve } = await import("./harness.mjs");
const server = await serve("--data-dir", "data");
const browser = await launch();
try {
  await picture("report", "#rte/can-we-conclude/train:3/text-and-statement", { width: 1280, height: 760 }, async (page) => {
    await page.locator("#prompts-title").evaluate((node) => node.scrollIntoView());
  });
  await picture("edit", "edit#rte/entailment/train:4", { width: 1280, height: 760 }, async (page) => {
    const area = page.locator("[id=part-template_entailment_inputs]");
    await area.fill("Premise: {{ premise }}\n\nHypothesis: {{ hypothesis }}n\n\nDoes the premise entail the hypothesis?\n{{ options_ }}");
    await page.locator("#found .finding", { hasText: "stands right after" }).waitFor();
    await page.locator("[data-setting=compare]").uncheck();
    await page.waitForFunction(() => document.querySelectorAll("#prompt .prompt").length === 1);
    await page.locator("#view").evaluate((node) => window.scrollTo(0, node.getBoundingClientRect().top - 60));
  });
  writeFileSync(MADE_OF, madeOf());
} finally {
  await browser.close();
  await server.stop();
}

async function picture(name, place, viewport, prepare) {
  const opened = await open(browser, server.url + place, { viewport, colorScheme: "light", reducedMotion: "reduce" });
  const { page } = opened;
  await page.locator(".prompt").first().waitFor();
  await prepare(page);
  await page.evaluate(() => document.activeElement?.blur());
  const path = join(PICTURES, `${name}.png`);
  const { length } = await page.screenshot({ path });
  await opened.close();
  if (length > LARGEST) {
    rmSync(path);
    throw new Error(`${name}.png has ${length} bytes, and at most ${LARGEST} are wanted`);
  }
}
