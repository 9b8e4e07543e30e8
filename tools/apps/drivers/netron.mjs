/**
 * Opens Netron's page in headless Chromium and prints the number of nodes that it draws.
 *
 *     node netron.mjs CHROMIUM URL
 */
import puppeteer from "puppeteer-core";

const LIMIT_MS = 120000;

const [chromium, url] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath: chromium,
  // Containers run as root, where Chromium's own sandbox does not start.
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
});
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => console.error(error.message));
  await page.goto(url);
  // Netron asks once about cookies, and shows what it cannot open in the same place.
  await page.waitForSelector("body.notification #message-button", { timeout: LIMIT_MS });
  await page.click("#message-button");
  await page.waitForFunction(
    () => document.querySelector(".node") || document.body.matches(".alert, .notification"),
    { timeout: LIMIT_MS },
  );
  const message = await page.evaluate(() => document.querySelector("#message-text").innerText);
  const nodes = (await page.$$(".node")).length;
  if (nodes === 0) throw new Error(message || "no node is drawn");
  console.log(nodes);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await browser.close();
}
