// The report: the file that `flanc audit --html` writes, opened from disk, and the same page from `flanc serve`.

import { after, before, describe, test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { accessible, arrived, flanc, launch, open, ROOT, scratch, serve } from "./harness.mjs";
import { putCorpus, MEGABYTE, ROWS } from "./corpus.mjs";

let browser;
let folder;
let server;
const urls = {};

before(async () => {
  browser = await launch();
  folder = scratch();
  const odd = putCorpus(folder.path, join(ROOT, "data/tokenizer.json"));
  const file = join(folder.path, "odd.html");
  flanc("audit", ...odd.arguments, "--html", file, "--html-rows", String(ROWS.length), "--allowed");
  server = await serve(...odd.arguments, "--report-rows", String(ROWS.length));
  urls["from disk"] = pathToFileURL(file).href;
  urls["from the server"] = server.url;
});

after(async () => {
  await server?.stop();
  await browser?.close();
  folder?.remove();
});

// The place that an address names.
const hash = (page) => page.evaluate(() => decodeURIComponent(location.hash));
const current = (page) => page.locator(".prompt.current");
const inputs = (page) => current(page).locator(".inputs .text");
// A control of the bar over the prompts.
const control = (page, name) => page.locator(`[data-focus="${name}"]`);

for (const where of ["from disk", "from the server"]) {
  describe(`the report ${where}`, () => {
    // Opens the page at a place, and fails if anything went wrong by the end.
    const at = (place, options, check) => async () => {
      const opened = await open(browser, urls[where] + place, options);
      await check(opened.page, opened);
      await opened.close();
    };

    test("the overview leads to a task and back", at("", {}, async (page) => {
      assert.equal(await page.locator(".cell").count(), 1);
      await page.getByRole("radio", { name: "rate" }).check();
      await page.getByRole("radio", { name: "prompts" }).check();
      await page.locator(".rates tbody a").click();
      await page.waitForFunction(() => location.hash === "#odd");
      assert.equal(await page.locator("h1").textContent(), "Odd <b>rows</b>");
      assert.equal(await page.locator("h1 b").count(), 0);
      await page.goBack();
      await page.locator(".cell").click();
      await page.waitForFunction(() => location.hash === "#odd");
    }));

    test("rows are text, whatever they hold", at("#odd/ask/train:1", {}, async (page) => {
      for (const [i, row] of [...ROWS.entries()].slice(1)) {
        await arrived(page, `#odd/ask/train:${i}`);
        await page.waitForFunction((number) => document.querySelector('[data-focus="row"]').selectedOptions[0].text === `train:${number}`, i);
        if (row.text !== MEGABYTE) {
          const shown = await inputs(page).evaluate((node) => node.textContent);
          const plain = row.text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "");
          const visible = shown.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "").replaceAll(/U\+[0-9A-F]{4}/g, "");
          assert.ok(visible.includes(plain), `${i}: ${shown}`);
        }
        if (i + 1 < ROWS.length) await page.keyboard.press("j");
      }
      assert.equal(await page.locator(":is(main, nav) :is(img, script, link, style, iframe)").count(), 0);
    }));

    test("a megabyte is folded, and unfolds in steps", at("#odd/ask/train:3", {}, async (page) => {
      const length = () => inputs(page).evaluate((node) => node.textContent.length);
      const folded = await length();
      assert.ok(folded < 5000, `${folded}`);
      await current(page).locator(".inputs .unfold").click();
      assert.ok((await length()) > folded);
      // The page stays quick: to the next row and back, with tokens shown.
      const took = await page.evaluate(async () => {
        const began = performance.now();
        for (const key of ["t", "k", "j", "t"]) {
          document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
          await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
        }
        return performance.now() - began;
      });
      assert.ok(took < 3000, `${took} ms`);
    }));

    test("every key does what the list says", at("#odd/ask/train:0", {}, async (page) => {
      const press = async (key, expected) => {
        await page.keyboard.press(key);
        await arrived(page, expected);
      };
      await press("j", "#odd/ask/train:1");
      await press("k", "#odd/ask/train:0");
      await press("l", "#odd/<i>write</i>/train:0");
      await press("h", "#odd/ask/train:0");
      await press("c", "#odd/ask/train:0/<i>write</i>");
      await page.locator("mark.changed").first().waitFor();
      await press("c", "#odd/ask/train:0");
      for (const [key, name] of [["o", "origins"], ["t", "tokens"], ["w", "blanks"]]) {
        const box = control(page, name);
        const was = await box.isChecked();
        await page.keyboard.press(key);
        assert.equal(await box.isChecked(), !was, name);
        await page.keyboard.press(key);
        assert.equal(await box.isChecked(), was, name);
      }
      await page.keyboard.press("?");
      assert.ok(await page.locator("dialog[open]").isVisible());
      // While the list is open, keys are not for the page.
      await page.keyboard.press("j");
      assert.equal(await hash(page), "#odd/ask/train:0");
      await page.keyboard.press("Escape");
      assert.equal(await page.locator("dialog[open]").count(), 0);
      await page.keyboard.press("/");
      assert.equal(await page.evaluate(() => document.activeElement.id), "search");
      await page.keyboard.type("ferry j");
      assert.equal(await hash(page), "#odd/ask/train:0");
      await page.keyboard.press("Escape");
      await page.locator("#main").focus();
      await press("g", "");
      // Switched off, letters do nothing.
      await page.goto(`${urls[where]}#odd/ask/train:0`);
      await page.locator("#help").click();
      await page.getByLabel("single-letter keys").uncheck();
      await page.keyboard.press("Escape");
      await page.locator("#main").focus();
      await page.keyboard.press("j");
      assert.equal(await hash(page), "#odd/ask/train:0");
    }));

    test("controls of a task", at("#odd", {}, async (page) => {
      await control(page, "next").click();
      await arrived(page, "#odd/ask/train:1");
      await control(page, "before").click();
      await arrived(page, "#odd/ask/train:0");
      await control(page, "row").selectOption({ label: "train:5" });
      await arrived(page, "#odd/ask/train:5");
      await control(page, "template").selectOption({ label: "<i>write</i>" });
      await arrived(page, "#odd/<i>write</i>/train:5");
      await control(page, "compare with").selectOption({ label: "ask" });
      await arrived(page, "#odd/<i>write</i>/train:5/ask");
      await control(page, "compare with").selectOption({ label: "none" });
      await arrived(page, "#odd/<i>write</i>/train:5");
      await control(page, "tokens").check();
      const token = page.locator(".prompt.current .inputs .token").first();
      const readout = page.locator(".prompt.current .inputs .readout");
      await token.hover();
      assert.match(await readout.textContent(), /token 1 · id \d+ · label −100/);
      await token.focus();
      await page.keyboard.press("ArrowRight");
      assert.match(await readout.textContent(), /token 2 · id \d+/);
      await page.locator(".prompt .action").first().click();
      await page.locator("mark.changed").first().waitFor();
      for (const summary of await page.locator("main details > summary").all()) await summary.click();
    }));

    test("findings are filtered", at("", {}, async (page) => {
      const cards = page.locator(".finding");
      const code = page.locator(".findings .controls select").first();
      const words = page.locator(".findings .controls input[type=search]");
      const all = await cards.count();
      assert.ok(all > 0);
      await code.selectOption("control-characters");
      const some = await cards.count();
      assert.ok(some > 0 && some < all, `${some} of ${all}`);
      await code.selectOption("");
      await words.fill("no such words");
      assert.equal(await cards.count(), 0);
      await words.fill("");
      await page.locator(".toggle.warning input").uncheck();
      assert.ok((await cards.count()) < all);
      await page.locator(".toggle.warning input").check();
      assert.equal(await cards.count(), all);
      await page.locator(".finding .row-link").first().click();
      await page.waitForFunction(() => /^#odd\/.*train:\d/.test(decodeURIComponent(location.hash)));
    }));

    test("the search finds prompts", at("", {}, async (page) => {
      await page.keyboard.press("/");
      await page.keyboard.type("beacon.png");
      await page.locator("#results a").first().waitFor();
      await page.keyboard.press("ArrowDown");
      await page.keyboard.press("Enter");
      await arrived(page, "#odd/ask/train:7");
      await page.reload();
      assert.match(await inputs(page).textContent(), /beacon\.png/);
    }));

    test("an address is a place, on loading and on going back", at("#odd/%3Ci%3Ewrite%3C%2Fi%3E/train:4", {}, async (page) => {
      assert.equal(await current(page).getAttribute("data-template"), "<i>write</i>");
      await page.keyboard.press("j");
      await arrived(page, "#odd/<i>write</i>/train:5");
      await page.goBack();
      await arrived(page, "#odd/<i>write</i>/train:4");
      await page.goto(`${urls[where]}#odd/ask/train:999`);
      assert.match(await page.locator(".notice").textContent(), /train:999 is not in this report/);
      await page.goto(`${urls[where]}#nothing/%zz/</x>`);
      assert.ok(await page.locator("#findings-title, h2").first().isVisible());
    }));

    test("the keyboard reaches everything, and gets out again", at("#odd/ask/train:0", {}, async (page) => {
      const seen = new Set();
      for (let i = 0; i < 150; i++) {
        await page.keyboard.press("Tab");
        const id = await page.evaluate(() => {
          const node = document.activeElement;
          if (node === document.body) return null;
          node.dataset.tabbed ??= String(Math.random());
          return node.dataset.tabbed;
        });
        // Past the end it begins again, at the beginning of the page.
        if (seen.has(id)) break;
        seen.add(id);
      }
      const left = await page.evaluate(() => [...document.querySelectorAll("a[href], button, select, input, summary, [tabindex='0']")]
        .filter((node) => !node.dataset.tabbed && !node.disabled && node.tabIndex >= 0 && node.checkVisibility({ visibilityProperty: true }) && node.type !== "radio")
        .map((node) => node.outerHTML.slice(0, 80)));
      assert.deepEqual(left, []);
    }));

    for (const [theme, place] of [["light", ""], ["dark", ""], ["light", "#odd/ask/train:2"], ["dark", "#odd/ask/train:2"]]) {
      test(`axe finds nothing serious: ${theme} ${place}`, at(place, { colorScheme: theme }, async (page) => {
        await page.keyboard.press("t");
        await accessible(page, `${where} ${theme} ${place}`);
      }));
    }

    test("themes", at("", { colorScheme: "light" }, async (page) => {
      const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const light = await ground();
      await page.locator("#theme").selectOption("dark");
      const dark = await ground();
      assert.notEqual(dark, light);
      await page.reload();
      assert.equal(await ground(), dark);
      await page.locator("#theme").selectOption("light");
      assert.equal(await ground(), light);
      await page.locator("#theme").selectOption("auto");
      await page.emulateMedia({ colorScheme: "dark" });
      assert.equal(await ground(), dark);
    }));

    test("print holds the prompts in full", at("#odd/ask/train:0", {}, async (page) => {
      await page.emulateMedia({ media: "print" });
      await page.evaluate(() => window.dispatchEvent(new Event("beforeprint")));
      assert.equal(await page.locator("#print .prompt").count(), 2 * ROWS.length);
      assert.ok(!(await page.locator(".bar").isVisible()));
      await page.evaluate(() => window.dispatchEvent(new Event("afterprint")));
    }));

    for (const place of ["", "#odd/ask/train:2", "#odd/ask/train:0/%3Ci%3Ewrite%3C%2Fi%3E"]) {
      test(`380 pixels are enough ${place}`, at(place, { viewport: { width: 380, height: 800 } }, async (page) => {
        const [content, width] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
        assert.ok(content <= width, `${content} > ${width}`);
        await page.locator("#tasks summary").click();
        assert.ok(await page.locator("#tasks a").first().isVisible());
      }));
    }
  });
}

test("a report of everything is small, and quick to appear", async (context) => {
  const file = join(folder.path, "all.html");
  flanc("audit", "--data-dir", "data", "--html", file);
  const { size } = statSync(file);
  assert.ok(size < 15 << 20, `${size} bytes`);
  const opened = await open(browser, pathToFileURL(file).href);
  const paint = () => opened.page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0);
  await opened.page.waitForFunction(() => performance.getEntriesByName("first-contentful-paint").length > 0);
  const first = await paint();
  context.diagnostic(`${(size / (1 << 20)).toFixed(1)} MiB, first paint after ${Math.round(first)} ms`);
  assert.ok(first < 3000, `${first} ms`);
  assert.ok(!/https?:\/\/(?!www\.w3\.org)/.test(readFileSync(join(ROOT, "src/preview/assets/page.html"), "utf8")));
  await opened.close();
});
