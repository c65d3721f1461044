/** How long the page takes until something is to be seen, and what it loads until then. */
import { test } from '@playwright/test';
import { Daemon } from '../e2e/daemon';

const ROUNDS = 5;

let daemon: Daemon;

test.beforeAll(() => {
  daemon = new Daemon();
});

test.afterAll(() => {
  daemon.end();
});

test('the first paint', async ({ browser }) => {
  const paints: number[] = [];
  let loaded = 0;
  for (let round = 0; round < ROUNDS; round += 1) {
    // A context of its own has nothing in its cache.
    const context = await browser.newContext();
    const page = await context.newPage();
    await page.goto(daemon.login());
    await page.getByRole('heading', { name: 'Machines' }).waitFor();
    // The browser tells a paint once the picture has left it.
    await page.waitForFunction(() => performance.getEntriesByName('first-contentful-paint').length > 0);
    const [paint = Number.NaN, bytes = 0] = await page.evaluate(() => {
      const paints = performance.getEntriesByName('first-contentful-paint');
      const files = performance.getEntriesByType('resource') as PerformanceResourceTiming[];
      const first = files.filter(({ name }) => /\.(js|css)$/.test(new URL(name).pathname));
      return [
        ...paints.map((one) => one.startTime),
        first.reduce((sum, one) => sum + one.encodedBodySize, 0),
      ];
    });
    paints.push(paint);
    loaded = bytes;
    await context.close();
  }
  const [least, median, most] = [0, ROUNDS >> 1, ROUNDS - 1].map(
    (place) => paints.sort((a, b) => a - b)[place] ?? Number.NaN,
  );
  console.log(
    `first paint after ${median?.toFixed(0)} ms (${least?.toFixed(0)} to ${most?.toFixed(0)}, ${ROUNDS} rounds), ` +
      `with ${(loaded / 1000).toFixed(0)} kB of scripts and styles, compressed`,
  );
});
