/** What the daemon takes with 100 machines and 20 open pages. */
import { expect, type Page, test } from '@playwright/test';
import { Daemon } from '../e2e/daemon';
import { share } from './processor';

const MACHINES = Number(process.env.MACHINES ?? 100);
const PAGES = Number(process.env.PAGES ?? 20);
const SECONDS = Number(process.env.SECONDS_EACH ?? 60);

let daemon: Daemon;

test.beforeAll(() => {
  daemon = new Daemon();
});

test.afterAll(() => {
  daemon.end();
});

test('a daemon with many machines and many pages', async ({ browser }) => {
  daemon.run('spawn', 'one', '--ram', '64M');
  daemon.run('exec', 'one', '--wait', '100', '--', 'true');
  for (let made = 1; made < MACHINES; made += 25)
    daemon.run('clone', 'one', '--no-agent', '--count', String(Math.min(25, MACHINES - made)));
  const { pid } = JSON.parse(daemon.run('daemon', 'status', '-o', 'json'));
  const alone = await share(pid, SECONDS);

  const context = await browser.newContext();
  const pages: Page[] = [];
  // A browser on a busy host asks less often than it would.
  let answers = 0;
  for (let number = 0; number < PAGES; number += 1) {
    const page = await context.newPage();
    page.on('requestfinished', (request) => {
      if (request.url().endsWith('/v1/metrics')) answers += 1;
    });
    await page.goto(number === 0 ? daemon.login() : new URL(address(number), pages[0]?.url()).href);
    await expect(page.getByRole('heading', { level: 1 })).toBeVisible();
    pages.push(page);
  }
  answers = 0;
  const watched = await share(pid, SECONDS);

  console.log(
    `${MACHINES} machines, over ${SECONDS} s: the daemon takes ${alone.toFixed(1)} % of a processor without pages, ` +
      `${watched.toFixed(1)} % with ${PAGES}, which asked for all figures ${(answers / SECONDS).toFixed(1)} times a second`,
  );
  expect(daemon.run('list', '-o', 'name').split('\n')).toHaveLength(MACHINES);
});

/** Most look at the list, some at one machine or the host. */
function address(number: number): string {
  if (number % 5 === 3) return `/vms/one-${number}`;
  return number % 5 === 4 ? '/host' : '/';
}
