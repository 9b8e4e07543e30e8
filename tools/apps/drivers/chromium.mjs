/**
 * Opens a page in headless Chromium and answers prompts there.
 *
 *     node chromium.mjs CHROMIUM URL [SCREENSHOT] < prompts > answers
 *
 * Each line of the input is a prompt as token ids, each line of the output its answer. The page
 * sets `moeExport` to a promise of an object with the function `answerIds`.
 */
import { createInterface } from "node:readline";

import puppeteer from "puppeteer-core";

const LIMIT_MS = 300000;

const [chromium, url, screenshot] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath: chromium,
  // Containers run as root, where Chromium's own sandbox does not start.
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
  protocolTimeout: LIMIT_MS,
});
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => console.error(error.message));
  await page.goto(url);
  await page.evaluate(async () => void (await globalThis.moeExport));
  for await (const line of createInterface({ input: process.stdin })) {
    const ids = line.trim().split(/\s+/).map(Number);
    const answer = await page.evaluate(async (ids) => (await globalThis.moeExport).answerIds(ids), ids);
    console.log(answer.join(" "));
  }
  if (screenshot) {
    await page.click("#run");
    await page.waitForSelector("#run:not([disabled])");
    await page.screenshot({ path: screenshot });
  }
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await browser.close();
}
