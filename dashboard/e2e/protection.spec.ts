/** Machines that survive their host, and that move: two daemons, the page of each. */
import { expect, type Page, test } from '@playwright/test';
import { Daemon } from './daemon';
import { expectAccessible, picture } from './look';

test.describe.configure({ mode: 'serial' });

let here: Daemon;
let there: Daemon;
let page: Page;

test.beforeAll(async ({ browser }) => {
  [here, there] = [new Daemon(), new Daemon()];
  there.run('list');
  for (const name of ['web', 'mover']) here.run('spawn', name, '--ram', '128M', '--accel', 'soft');
  page = await browser.newPage();
  await page.goto(here.login());
});

test.afterAll(() => {
  here.end();
  there.end();
});

const visit = (name: string) => page.getByRole('navigation').getByRole('link', { name }).click();
const row = (of: Page, vm: string) =>
  of.getByRole('row').filter({ has: of.getByRole('link', { name: vm, exact: true }) });
const action = async (vm: string, label: string) => {
  await page.getByRole('button', { name: `Actions of ${vm}`, exact: true }).click();
  await page.getByRole('menuitem', { name: label }).click();
};
const backupPid = () => JSON.parse(there.run('info', 'web', '-o', 'json')).runtime.pid as number;

test('a machine is protected, with its task and the command that does the same', async () => {
  await action('web', 'Protect…');
  const dialog = page.getByRole('dialog');
  await dialog.getByRole('button', { name: 'Protect', exact: true }).click();
  await expect(dialog).toContainText('from 1 to 8 daemons');
  await dialog.getByLabel('Daemons that keep copies').fill(there.address);
  await dialog.getByLabel('Register').fill(`file:${there.path('register')}`);
  await dialog.getByText('Go on without', { exact: true }).click();
  await dialog.getByRole('button', { name: 'How often, how much, how fast' }).click();
  await dialog.getByLabel('Interval, ms').fill('100');
  // Nobody is to take over, nor a copy that is late to be given up.
  await dialog.getByLabel('Lease, ms').fill('60000');
  await dialog.getByLabel('Silence, ms').fill('60000');
  await expect(dialog.getByLabel('Equivalent command')).toHaveText(
    `queztl-hv protect web --to ${there.address} --register file:${there.path('register')} --mode best-effort --interval 100 --silence 60000 --lease 60000`,
  );
  await expectAccessible(page);
  await picture(page, 'protect');
  await dialog.getByRole('button', { name: 'Protect', exact: true }).click();
  await expect(dialog).toBeHidden();
  await page.reload();

  await page.getByRole('button', { name: 'Tasks' }).click();
  const task = page.getByRole('listitem').filter({ hasText: 'Protect web' });
  await expect(task).toContainText('succeeded');
  await expect(task).toContainText('queztl-hv protect web --to');
  await page.getByRole('button', { name: 'Close the tasks' }).click();
  await expect(row(page, 'web')).toContainText('protected');
});

test('how it goes is shown as it goes', async () => {
  await row(page, 'web').getByRole('link').click();
  await page.getByRole('tab', { name: 'Protection' }).click();
  const figure = (label: string) => page.locator(`[data-figure="${label}"]`);
  await expect(figure('Role')).toHaveText('primary');
  await expect(figure('When copies are out of reach')).toHaveText('goes on without');
  await expect(figure('Interval')).toHaveText('100 ms');
  const copies = page.getByRole('table', { name: 'Copies' });
  await expect(copies.getByRole('row').nth(1)).toContainText('whole');

  const epoch = Number(await figure('Epoch').textContent());
  await expect(async () =>
    expect(Number(await figure('Epoch').textContent())).toBeGreaterThan(epoch),
  ).toPass();
  await page.reload();
  await expect(figure('Role')).toHaveText('primary');
  await expectAccessible(page);
  await page.waitForTimeout(8_000);
  await picture(page, 'protection');
});

test('the tree has a stream to the copy, which moves, and says so in its table', async () => {
  await visit('Tree');
  const streams = page.getByRole('treegrid').getByRole('row').filter({ hasText: 'web' });
  await expect(streams).toContainText('has its copy');
  await expect(page.getByRole('table', { name: 'Nodes' })).toContainText('web: has its copy');
  const canvas = page.locator('canvas');
  await expect(canvas).toBeVisible();
  await page.waitForTimeout(3_000);
  const before = await canvas.screenshot();
  await expect(async () => expect((await canvas.screenshot()).equals(before)).toBe(false)).toPass();
  await expectAccessible(page);
  await picture(page, 'streams');
  // What moves takes of the processor that draws it.
  await visit('Machines');
});

test('the other daemon shows the copy as what it is', async ({ browser }) => {
  const other = await browser.newPage();
  await other.goto(there.login());
  await expect(row(other, 'web')).toContainText('backup');
  await row(other, 'web').getByRole('link').click();
  await other.getByRole('tab', { name: 'Protection' }).click();
  await expect(other.getByText('This is a copy.')).toBeVisible();
  await expectAccessible(other);
  await other.close();
});

test('a copy that is behind is an alert until it has caught up', async () => {
  await visit('Alerts');
  const pid = backupPid();
  process.kill(pid, 'SIGSTOP');
  const firing = page.getByRole('table', { name: 'Firing' });
  await expect(firing.getByRole('row').filter({ hasText: 'web' })).toContainText('behind', {
    timeout: 90_000,
  });
  process.kill(pid, 'SIGCONT');
  await expect(page.getByRole('table', { name: 'Over' })).toContainText('behind', { timeout: 90_000 });
});

test('a machine moves to the other daemon', async ({ browser }) => {
  await visit('Machines');
  await action('mover', 'Move…');
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('To', { exact: true }).fill(there.address);
  await expectAccessible(page);
  await dialog.getByRole('button', { name: 'Move', exact: true }).click();
  await expect(row(page, 'mover')).toHaveCount(0);

  const other = await browser.newPage();
  await other.goto(there.login());
  await expect(row(other, 'mover')).toContainText('running');
  await other.close();
});

test('a protection ends after a question that names what is lost', async () => {
  await action('web', 'Unprotect…');
  const dialog = page.getByRole('dialog');
  await expect(dialog).toContainText('lost if this host fails');
  await expect(dialog.getByLabel('Equivalent command')).toHaveText('queztl-hv unprotect web');
  await expectAccessible(page);
  await dialog.getByRole('button', { name: 'Unprotect' }).click();

  await expect(row(page, 'web')).not.toContainText('protected');
  await page.getByRole('button', { name: 'Tasks' }).click();
  await expect(page.getByRole('listitem').filter({ hasText: 'Unprotect web' })).toContainText('succeeded');
  await page.getByRole('button', { name: 'Close the tasks' }).click();
});
