// The editor of `flanc serve`: every control, by pointer and by keyboard.

import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { accessible, arrived, launch, open, ROOT, scratch, serve } from "./harness.mjs";
import { putCorpus, MEGABYTE, ROWS } from "./corpus.mjs";

let browser;
let folder;
let odd;
let server;
let bundled;

before(async () => {
  browser = await launch();
  folder = scratch();
  odd = putCorpus(folder.path, join(ROOT, "data/tokenizer.json"));
  server = await serve(...odd.arguments);
  bundled = await serve("--data-dir", "data");
});

after(async () => {
  await server?.stop();
  await bundled?.stop();
  await browser?.close();
  folder?.remove();
});

const part = (page, name) => page.locator(`[id="part-${name.replace(/[^\w-]/g, "_")}"]`);
const inputs = (page) => page.locator("#prompt .prompt.current .inputs .text");
const hash = (page) => page.evaluate(() => decodeURIComponent(location.hash));
// Until the prompt holds a text.
const shows = (page, text) => page.waitForFunction((wanted) => document.querySelector("#prompt .prompt.current")?.textContent.includes(wanted), text);
const ready = (page) => page.waitForFunction(() => document.querySelector("#prompt .prompt, #prompt .empty") !== null);

describe("the editor", () => {
  let opened;
  let page;

  beforeEach(async () => {
    writeFileSync(odd.path, odd.definition);
  });
  afterEach(async () => {
    await opened?.close();
    opened = null;
  });

  async function edit(place = "#odd/ask/train:0", options = {}, from = server) {
    opened = await open(browser, `${from.url}edit${place}`, options);
    page = opened.page;
    await ready(page);
    return page;
  }

  test("shows what becomes of a row while somebody types", async (context) => {
    await edit();
    const area = part(page, "template/ask/inputs");
    await area.focus();
    await page.keyboard.press("Control+End");
    await page.keyboard.type("\nYes or no?", { delay: 40 });
    await shows(page, "Yes or no?");
    const took = await page.evaluate(() => performance.getEntriesByName("key to screen").map(({ duration }) => duration).sort((a, b) => a - b));
    const median = took[took.length >> 1];
    context.diagnostic(`from key to screen ${Math.round(median)} ms, at most ${Math.round(took[took.length - 1])} ms`);
    assert.ok(took.length >= 5, "most keys are answered one by one");
    assert.ok(median < 100, `${median} ms`);
    // Compared with what is saved, the new words are marked.
    assert.match((await page.locator("#prompt .prompt.current mark").allTextContents()).join(""), /Yes or no\?/);
    await page.locator("[data-setting=compare]").uncheck();
    await page.waitForFunction(() => document.querySelectorAll("#prompt .prompt").length === 1);
    await page.locator("[data-setting=compare]").check();
    await page.waitForFunction(() => document.querySelectorAll("#prompt .prompt").length === 2);
    // Without edits there is nothing to compare.
    await page.getByRole("button", { name: "revert inputs" }).click();
    await page.waitForFunction(() => document.querySelectorAll("#prompt .prompt").length === 1);
    assert.ok(await page.locator("#save").isDisabled());
  });

  test("with bundled corpora, a key is on screen within a tenth of a second", async (context) => {
    for (const task of ["rte", "cnn_dailymail", "squad_v1", "wmt16_translate_deen"]) {
      await edit(`#${task}`, {}, bundled);
      const area = page.locator("#template-parts textarea").first();
      await area.focus();
      await page.keyboard.press("Control+End");
      await page.keyboard.type(" And so on.", { delay: 60 });
      await shows(page, "And so on.");
      const took = await page.evaluate(() => performance.getEntriesByName("key to screen").map(({ duration }) => duration).sort((a, b) => a - b));
      const median = took[took.length >> 1];
      context.diagnostic(`${task}: ${Math.round(median)} ms`);
      assert.ok(median < 100, `${task}: ${median} ms`);
      await opened.close();
    }
    opened = null;
  });

  test("underlines what is wrong, and says it", async () => {
    await edit();
    const area = part(page, "template/ask/inputs");
    await area.fill("😀 {{ txt }} {{ text | upper }}");
    await page.locator("#template-parts .behind .wrong").first().waitFor();
    assert.deepEqual(await page.locator("#template-parts .behind .wrong").allTextContents(), ["txt"]);
    assert.equal(await area.getAttribute("aria-invalid"), "true");
    const said = page.locator(`[id="${await area.getAttribute("aria-describedby")}"]`);
    assert.match(await said.textContent(), /1:7.*txt.*did you mean `text`/s);
    // The prompt that was there stays to look at, marked as old.
    assert.ok(await page.locator("#prompt.stale .prompt").count());
    await area.fill("{{ text | upper }}");
    await shows(page, ROWS[0].text.toUpperCase());
    assert.equal(await page.locator("#prompt.stale").count(), 0);
    assert.equal(await area.getAttribute("aria-invalid"), "false");
    await area.fill("{% for x in range(100000) %}{% for y in range(100000) %}{{ text }}{% endfor %}{% endfor %}");
    await page.locator("#prompt .failure").waitFor();
    await area.fill("{{ (".repeat(2000));
    await page.locator("#template-parts .complaints .error").waitFor();
    await area.fill("</textarea></pre><script>window.harm = 9</script>{{ text }}");
    await shows(page, "</textarea></pre><script>window.harm = 9</script>");
  });

  test("edits fields, and shows their values", async () => {
    await edit();
    const value = page.locator("output[for=part-field_options]");
    assert.equal(await value.textContent(), '["yes","no"]');
    await part(page, "field/options").fill("['ja', 'nein']");
    await shows(page, "- nein");
    assert.equal(await value.textContent(), '["ja","nein"]');
    // What is wrong elsewhere leads there.
    await part(page, "field/text").fill("txt");
    await page.locator("#field-parts .complaints .error").waitFor();
    await page.locator("#revert").click();
    await shows(page, "- no");
    assert.equal(await page.locator(".source-part.edited").count(), 0);
  });

  test("findings follow what is typed", async () => {
    await edit();
    await part(page, "template/ask/inputs").fill("Text: {{ text }}n\nIs it so?\n{{ options_ }}");
    await page.locator("#found .finding", { hasText: "stands right after" }).waitFor();
    await page.locator("#found .finding", { hasText: "stands right after" }).locator(".row-link").last().click();
    assert.match(await hash(page), /#odd\/ask\/train:[1-9]/);
    await part(page, "template/ask/inputs").fill("Text: {{ text }}\nIs it so?\n{{ options_ }}");
    await page.locator("#found .finding", { hasText: "stands right after" }).waitFor({ state: "detached" });
  });

  test("checks a thousand rows, or gives it up", async () => {
    await edit("#rte", {}, bundled);
    await part(page, "template/can-we-conclude/inputs").fill("{{ premise }}n {{ hypothesis }} {{ options_ }}");
    const check = page.getByRole("button", { name: "Check 1,000 rows" });
    await check.click();
    await page.locator("#run", { hasText: /\d+ findings? in \d+ prompts of \d+ rows/ }).waitFor();
    await page.locator("#found .finding", { hasText: "stands right after" }).waitFor();
    // A slow answer gives time to change one's mind.
    await page.route("**/api/checks", async (route) => {
      await new Promise((wake) => setTimeout(wake, 400));
      await route.continue();
    });
    await check.click();
    await page.getByRole("button", { name: "Cancel" }).click();
    await page.locator("#run", { hasText: "cancelled" }).waitFor();
    assert.ok(await check.isEnabled());
    await page.waitForTimeout(1000);
    await page.unroute("**/api/checks");
  });

  test("saves, keeping the rest of the file", async () => {
    await edit();
    await part(page, "template/ask/targets").fill("{{ answer }}!");
    await part(page, "template/ask/inputs").fill("It's said: {{ text }}\n{{ options_ }}");
    await shows(page, "It's said");
    await page.keyboard.press("Control+s");
    await page.locator("#unsaved", { hasText: "saved" }).filter({ hasNotText: "unsaved" }).waitFor();
    const expected = odd.definition.replace("'''\nText: {{ text }}\nIs it so?\n{{ options_ }}'''", "'''\nIt's said: {{ text }}\n{{ options_ }}'''").replace('"{{ answer }}"   # nothing else', '"{{ answer }}!"   # nothing else');
    assert.equal(readFileSync(odd.path, "utf8"), expected);
    assert.equal(await page.locator(".source-part.edited").count(), 0);
    // By the button as well.
    await part(page, "template/ask/targets").fill("{{ answer }}");
    await shows(page, "yes");
    await page.locator("#save").click();
    await page.locator("#unsaved", { hasText: "saved" }).filter({ hasNotText: "unsaved" }).waitFor();
    assert.match(readFileSync(odd.path, "utf8"), /targets = "\{\{ answer \}\}" {3}# nothing else/);
  });

  test("says when the file was changed by others, and keeps the edits", async () => {
    await edit();
    page.expected = /status of 409/;
    await part(page, "template/ask/targets").fill("{{ answer }}?");
    await shows(page, "yes?");
    writeFileSync(odd.path, odd.definition.replace("Is it so?", "Is it really so?"));
    await page.locator("#save").click();
    await page.locator("#problems", { hasText: "has been changed since it was read" }).waitFor();
    await page.getByRole("button", { name: "Read it again" }).click();
    await shows(page, "Is it really so?");
    assert.equal(await part(page, "template/ask/targets").inputValue(), "{{ answer }}?");
    await page.locator("#save").click();
    await page.locator("#unsaved", { hasText: "saved" }).filter({ hasNotText: "unsaved" }).waitFor();
    assert.match(readFileSync(odd.path, "utf8"), /Is it really so\?[^]*"\{\{ answer \}\}\?" {3}# nothing else/);
  });

  test("bundled definitions can be tried, and not be saved", async () => {
    await edit("#rte/entailment/train:15", {}, bundled);
    page.expected = /status of 409/;
    assert.match(await page.locator("#notice").textContent(), /--templates DIR/);
    await part(page, "template/entailment/targets").fill("{{ answer }}.");
    await shows(page, "yes.");
    await page.locator("#save").click();
    await page.locator("#problems", { hasText: "--templates DIR" }).waitFor();
    const [file] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download the edited definition" }).click()]);
    assert.equal(file.suggestedFilename(), "rte.toml");
    assert.match(readFileSync(await file.path(), "utf8"), /targets = "\{\{ answer \}\}\."/);
    // Edits of one task stay while another is looked at.
    await page.locator("#task").selectOption("sst2");
    await page.locator("#unsaved", { hasText: "also in rte" }).waitFor();
    await page.goBack();
    await page.waitForFunction(() => location.hash.startsWith("#rte"));
    await shows(page, "yes.");
    assert.equal(await part(page, "template/entailment/targets").inputValue(), "{{ answer }}.");
    // Parts that stand in another task's file say so.
    await page.locator("#task").selectOption("anli_r2");
    await page.locator("#notice", { hasText: "anli_r1" }).waitFor();
  });

  test("rows: by number, step, chance and text", async () => {
    await edit();
    await page.getByRole("button", { name: "Next row" }).click();
    assert.equal(await hash(page), "#odd/ask/train:1");
    await shows(page, "window.harm = 1");
    await page.getByRole("button", { name: "Row before" }).click();
    await page.locator(".row-number").first().fill("5");
    await page.keyboard.press("Enter");
    await shows(page, "backticks");
    await page.locator(".row-number").first().fill("999");
    await page.keyboard.press("Enter");
    await shows(page, "beacon.png");
    assert.equal(await hash(page), `#odd/ask/train:${ROWS.length - 1}`);
    const seen = new Set();
    for (let i = 0; i < 12; i++) {
      const asked = page.waitForResponse("**/api/draft");
      await page.getByRole("button", { name: "random" }).click();
      await asked;
      await page.waitForFunction(() => /train:\d+$/.test(location.hash));
      seen.add(await hash(page));
    }
    assert.ok(seen.size > 2, [...seen].join());
    await page.locator("#search").fill("FERRY");
    await page.keyboard.press("Enter");
    await page.locator(".hits button").waitFor();
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("Enter");
    assert.equal(await hash(page), "#odd/ask/train:0");
    assert.ok(!(await page.locator(".hits").isVisible()));
    await page.locator("#search").fill("no such words");
    await page.keyboard.press("Enter");
    await page.locator(".hits", { hasText: "No row holds that" }).waitFor();
    await page.keyboard.press("Escape");
    assert.ok(!(await page.locator(".hits").isVisible()));
    await edit("#rte/entailment/train:2", {}, bundled);
    await page.locator("#rows select").selectOption("validation");
    await arrived(page, "#rte/entailment/validation:0");
  });

  test("rows are text, whatever they hold", async () => {
    await edit();
    for (const [i, row] of ROWS.entries()) {
      await page.goto(`${server.url}edit#odd/ask/train:${i}`);
      await page.waitForFunction((n) => document.querySelector(".row-number").value === String(n), i);
      const start = [...row.text.matchAll(/[\p{L}\p{N} ]{3,}/gu)][0][0].slice(0, 40);
      await shows(page, start);
      await page.locator("#row-features summary").click();
      await page.waitForFunction((text) => document.getElementById("features").textContent.includes(text), JSON.stringify(start).slice(1, -1));
      await page.locator("#row-features summary").click();
    }
    // A megabyte is folded here as well, and the row cut.
    await page.goto(`${server.url}edit#odd/ask/train:3`);
    await page.locator("#prompt .unfold").first().waitFor();
    assert.ok((await page.locator("#features").evaluate((node) => node.textContent.length)) < MEGABYTE.length / 4);
  });

  test("prompts are flagged and exported", async () => {
    await edit("#odd/ask/train:1");
    await page.keyboard.press("f");
    await page.keyboard.type("odd </script> “note”");
    await page.keyboard.press("Enter");
    await page.locator(".flag-list li").waitFor();
    assert.equal(await page.locator("#flag-count").textContent(), "1");
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Export as JSONL" }).click()]);
    assert.equal(download.suggestedFilename(), "flags.jsonl");
    const lines = readFileSync(await download.path(), "utf8").trimEnd().split("\n").map(JSON.parse);
    assert.deepEqual(lines, [{ task: "odd", template: "ask", split: "train", row: 1, inputs: `Text: ${ROWS[1].text}\nIs it so?\nOPTIONS:\n- yes\n- no`, targets: "no", note: "odd </script> “note”" }]);
    await page.getByRole("button", { name: "Close" }).last().click();
    await page.goto(`${server.url}edit#odd/ask/train:0`);
    await page.locator("#flags").click();
    await page.locator(".flag-list a").click();
    assert.equal(await hash(page), "#odd/ask/train:1");
    await page.locator("#flags").click();
    await page.getByRole("button", { name: /Remove the flag/ }).click();
    await page.locator(".flag-list li").waitFor({ state: "detached" });
    assert.ok(await page.getByRole("button", { name: "Export as JSONL" }).isDisabled());
    await page.keyboard.press("Escape");
  });

  test("every key does what the list says", async () => {
    await edit();
    const press = async (key, expected) => {
      await page.keyboard.press(key);
      await arrived(page, expected);
    };
    await press("j", "#odd/ask/train:1");
    await press("k", "#odd/ask/train:0");
    await press("l", "#odd/<i>write</i>/train:0");
    await press("h", "#odd/ask/train:0");
    for (const [key, name] of [["c", "compare"], ["o", "origins"], ["t", "tokens"], ["w", "blanks"]]) {
      const was = await page.locator(`[data-setting=${name}]`).isChecked();
      await page.keyboard.press(key);
      assert.equal(await page.locator(`[data-setting=${name}]`).isChecked(), !was, name);
      await page.keyboard.press(key);
    }
    await page.keyboard.press("e");
    assert.equal(await page.evaluate(() => document.activeElement.id), "part-template_ask_inputs");
    // What is typed is typed, and Esc leaves; Tab goes on.
    await page.keyboard.type("j");
    assert.equal(await hash(page), "#odd/ask/train:0");
    await page.keyboard.press("Tab");
    assert.notEqual(await page.evaluate(() => document.activeElement.id), "part-template_ask_inputs");
    await page.keyboard.press("Shift+Tab");
    await page.keyboard.press("Escape");
    assert.equal(await page.evaluate(() => document.activeElement.id), "main");
    await page.keyboard.press("/");
    assert.equal(await page.evaluate(() => document.activeElement.id), "search");
    await page.keyboard.press("Escape");
    await page.locator("#main").focus();
    await page.keyboard.press("?");
    assert.match(await page.locator("dialog[open]").textContent(), /a random row/);
    await page.keyboard.press("Escape");
    await page.keyboard.press("r");
    await page.waitForFunction(() => /train:\d/.test(decodeURIComponent(location.hash)));
    await page.locator("#revert").click();
  });

  test("the keyboard reaches everything, and gets out again", async () => {
    await edit();
    const seen = new Set();
    for (let i = 0; i < 100; i++) {
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
    const left = await page.evaluate(() => [...document.querySelectorAll("a[href], button, select, input, textarea, summary")]
      .filter((node) => !node.dataset.tabbed && !node.disabled && node.tabIndex >= 0 && node.checkVisibility({ visibilityProperty: true }))
      .map((node) => node.outerHTML.slice(0, 80)));
    assert.deepEqual(left, []);
    const names = await page.evaluate(() => document.querySelector(".skip").textContent);
    assert.match(names, /Skip/);
  });

  test("an address is a place, and leads to the report and back", async () => {
    await edit("#odd/%3Ci%3Ewrite%3C%2Fi%3E/train:2");
    assert.equal(await page.locator("#template").inputValue(), "<i>write</i>");
    await page.locator("#template").selectOption("ask");
    await arrived(page, "#odd/ask/train:2");
    await page.goBack();
    await page.waitForFunction(() => document.getElementById("template").value === "<i>write</i>");
    await page.reload();
    await page.waitForFunction(() => document.getElementById("template").value === "<i>write</i>");
    await page.locator("#report").click();
    await page.locator(".edit-link").waitFor();
    assert.equal(await hash(page), "#odd/<i>write</i>/train:2");
    await page.locator(".edit-link").click();
    await ready(page);
    assert.equal(await page.locator("#template").inputValue(), "<i>write</i>");
  });

  for (const theme of ["light", "dark"]) {
    test(`axe finds nothing serious: ${theme}`, async () => {
      await edit("#odd/ask/train:2", { colorScheme: theme });
      await part(page, "template/ask/inputs").fill("Text: {{ text }}n {{ txt }}{% if 1 %}{% endif %}");
      await page.locator("#template-parts .behind .wrong").first().waitFor();
      await accessible(page, `${theme}, with errors`);
      await part(page, "template/ask/inputs").fill("Text: {{ text }}n");
      await page.locator("#found .finding", { hasText: "stands right after" }).waitFor();
      await accessible(page, `${theme}, with findings`);
      await page.locator("#flags").click();
      await accessible(page, `${theme}, flags`);
      await page.keyboard.press("Escape");
    });
  }

  test("380 pixels are enough", async () => {
    await edit("#odd/ask/train:1", { viewport: { width: 380, height: 800 } });
    await part(page, "template/ask/inputs").fill("Text: {{ text }} {{ txt }}");
    await page.locator("#template-parts .behind .wrong").first().waitFor();
    const [content, width] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
    assert.ok(content <= width, `${content} > ${width}`);
  });

  test("says that the server is gone", async () => {
    const own = await serve(...odd.arguments);
    await edit("#odd/ask/train:0", {}, own);
    page.expected = /ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET/;
    await own.stop();
    await part(page, "template/ask/targets").fill("x");
    await page.locator("#problems", { hasText: "does not answer" }).waitFor();
  });
});
