/** The dashboard in a browser, with a daemon and machines as anybody has them. Each test goes on from the one before. */
import { expect, type Page, test } from '@playwright/test';
import { Daemon } from './daemon';
import { expectAccessible, picture } from './look';

test.describe.configure({ mode: 'serial' });

let daemon: Daemon;
let page: Page;
const refused: string[] = [];

test.beforeAll(async ({ browser }) => {
  daemon = new Daemon();
  page = await browser.newPage();
  page.on('console', (message) => {
    if (/Content Security Policy/.test(message.text())) refused.push(message.text());
  });
});

test.afterAll(() => {
  daemon.end();
});

const action = async (vm: string, label: string) => {
  await page.getByRole('button', { name: `Actions of ${vm}`, exact: true }).click();
  await page.getByRole('menuitem', { name: label }).click();
};
const row = (vm: string) =>
  page.getByRole('row').filter({ has: page.getByRole('link', { name: vm, exact: true }) });
const visit = (name: string) => page.getByRole('navigation').getByRole('link', { name }).click();
const tab = (name: string) => page.getByRole('tab', { name }).click();

test('a wrong token is refused with a sentence', async () => {
  const address = new URL(daemon.login());
  await page.goto(address.origin);
  await page.getByRole('textbox', { name: 'Token' }).fill('qz_wrong');
  await page.getByRole('button', { name: 'Log in' }).click();

  await expect(page.getByRole('alert')).toContainText('token is not known');
  await expectAccessible(page);
  await picture(page, 'login');
});

test('a login works once and leaves no trace in the address', async ({ browser }) => {
  const address = daemon.login();
  await page.goto('about:blank');
  await page.goto(address);
  await expect(page.getByRole('heading', { name: 'Machines' })).toBeVisible();
  expect(page.url()).not.toContain('login');

  const stranger = await browser.newPage();
  await stranger.goto(address);
  await expect(stranger.getByRole('alert')).toContainText('has been used');
  await stranger.close();
});

test('a machine is made and starts', async () => {
  await page.getByRole('button', { name: 'New machine' }).click();
  await page.getByLabel('Name').fill('one');
  await page.getByLabel('RAM').fill('256M');
  await expect(page.getByLabel('Equivalent command').last()).toHaveText('queztl-hv spawn one --ram 256M');
  await expectAccessible(page);
  await picture(page, 'spawn');
  await page.getByRole('button', { name: 'Make it', exact: true }).click();

  await expect(row('one')).toContainText('running');
});

test('metrics move, and the page is the same after a reload', async () => {
  await row('one').getByRole('link').click();
  await expect(page.getByRole('heading', { name: 'one' })).toBeVisible();
  // A host that others use gives it little, but more than a guest that does nothing takes.
  const processor = page.locator('[data-figure=Processor]');
  await expect(processor).toBeVisible();
  daemon.run('exec', 'one', '--', 'sh', '-c', 'timeout 30 sh -c "while :; do :; done" >/dev/null 2>&1 &');
  await expect(async () =>
    expect(Number.parseFloat((await processor.textContent()) ?? '')).toBeGreaterThan(3),
  ).toPass();

  await page.getByText('1h', { exact: true }).click();
  await expect(page).toHaveURL(/range=1h/);
  await page.reload();
  await expect(page).toHaveURL(/range=1h/);
  await expect(page.getByRole('region', { name: 'Processor' }).getByRole('img')).toHaveAttribute(
    'aria-label',
    /now/,
  );
  await expectAccessible(page);
});

test('the console takes keys and survives a reload with what it has shown', async () => {
  await tab('Terminal');
  const terminal = page.getByRole('region', { name: 'Console of one' });
  await terminal.click();
  await page.keyboard.type('echo kept-$((40 + 2))\n');
  await expect(terminal).toContainText('kept-42');

  await page.reload();
  await expect(terminal).toContainText('kept-42');
  await picture(page, 'terminal');
});

test('a shell runs in a terminal of its own', async () => {
  await page.getByText('Shell', { exact: true }).click();
  const terminal = page.getByRole('region', { name: 'Shell of one' });
  await terminal.click();
  await page.keyboard.type('echo rows $(stty size | wc -w)\n');
  await expect(terminal).toContainText('rows 2');

  // The same shell after a reload: what it showed, and what it knows.
  await page.keyboard.type('kept=variable-$((40 + 2))\n');
  await page.reload();
  await expect(terminal).toContainText('rows 2');
  await terminal.click();
  await page.keyboard.type('echo again $kept\n');
  await expect(terminal).toContainText('again variable-42');
  await page.keyboard.type('exit 3\n');
  await expect(page.getByText('the shell ended with status 3')).toBeVisible();
});

test('a snapshot is taken', async () => {
  await tab('Snapshots');
  await page.getByRole('button', { name: 'Take a snapshot' }).click();
  await page.getByLabel('Name').fill('before');
  await page.getByRole('button', { name: 'Take snapshot' }).click();
  await expect(page.getByRole('dialog')).toBeHidden();
  // The work is the daemon's: a page that is loaded anew finds it.
  await page.reload();

  await expect(page.getByRole('table', { name: 'Snapshots' })).toContainText('before');
  await expectAccessible(page);
  await picture(page, 'snapshots');
});

test('ten clones are made, and all are found', async () => {
  await visit('Machines');
  await action('one', 'Clone…');
  await page.getByLabel('How many').fill('10');
  await page.getByRole('button', { name: 'Clone', exact: true }).click();
  await expect(page.getByRole('dialog')).toBeHidden();
  await page.reload();

  await expect(page.getByText('11 machines')).toBeVisible();
  await page.getByRole('button', { name: 'Tasks' }).click();
  const clones = page.getByRole('listitem').filter({ hasText: 'Clone one' });
  await expect(clones).toContainText('queztl-hv clone one --count 10');
  await expectAccessible(page);
  await picture(page, 'tasks');
  // Each clone's agent is told its new identity first; where one does not answer, all clones are taken back.
  await expect(clones).toContainText('succeeded', { timeout: 90_000 });
  await page.getByRole('button', { name: 'Close the tasks' }).click();

  await page.getByRole('button', { name: 'Processor' }).click();
  await expect(page.getByRole('columnheader', { name: 'Processor' })).toHaveAttribute(
    'aria-sort',
    'descending',
  );
  await expect(row('one-3').locator('td').nth(2)).toContainText('%');
  await expectAccessible(page);
  await picture(page, 'machines');
});

test('the tree shows the family in space and as a table that keys can walk', async () => {
  await visit('Tree');
  const tree = page.getByRole('treegrid');
  await expect(tree.getByRole('row').filter({ hasText: 'one-10' })).toHaveAttribute('aria-level', '2');
  await expect(page.locator('canvas')).toBeVisible();
  await picture(page, 'tree');
  await expectAccessible(page);

  await tree.locator('tbody tr').first().focus();
  await page.keyboard.press('ArrowLeft');
  await expect(tree.locator('tbody tr')).toHaveCount(1);
  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('End');
  await page.keyboard.press('Enter');
  await expect(page.getByRole('heading', { name: 'one-10' })).toBeVisible();
});

test('host, images, events and limits can be read by everybody', async () => {
  await visit('Host');
  await expect(page.getByRole('table', { name: 'Who has what' })).toContainText('one-1');
  await expectAccessible(page);
  await picture(page, 'host');
  await visit('Events');
  await page.getByLabel('Find events').fill('one-7 cloned');
  await expect(page.getByRole('table', { name: 'Events' })).toContainText('one-7');
  await expectAccessible(page);
  await picture(page, 'events');
  await visit('Images');
  await expect(page.getByRole('heading', { name: 'Images' })).toBeVisible();
  await expectAccessible(page);
  await picture(page, 'images');
});

test('logs of the daemon, of who changed what, and of a machine’s process are found by words', async () => {
  await visit('Logs');
  const records = page.getByRole('table', { name: 'Records' });
  await page.getByText('Audit', { exact: true }).click();
  await page.getByLabel('Find in the logs').fill('POST vms');
  await expect(records.getByRole('row').nth(1)).toContainText('/v1/vms');
  await expect(page).toHaveURL(/of=audit/);
  await page.reload();
  await expect(records.getByRole('row').nth(1)).toContainText('method=POST');
  await expectAccessible(page);
  await page.getByLabel('Find in the logs').fill('dashboard');
  await picture(page, 'logs');

  await page.goto(`${new URL(page.url()).origin}/vms/one?tab=log`);
  await page.getByText('Hypervisor', { exact: true }).click();
  await expect(page.locator('pre[aria-label=Log]')).toContainText('the machine starts');
  await page.getByText('Guest', { exact: true }).click();
  await page.getByLabel('Find in the log').fill('BusyBox');
  await expect(page.locator('pre[aria-label=Log]')).toContainText('BusyBox');
  await expectAccessible(page);
});

test('limits are followed', async () => {
  await page.goto(`${new URL(page.url()).origin}/vms/one?tab=limits`);
  await page.getByLabel('Most it may use').fill('50');
  await expect(page.getByLabel('Equivalent command')).toContainText('--cpu-quota 50');
  await page.getByRole('button', { name: 'Apply' }).click();

  await expect(page.getByText('follows its new limits')).toBeVisible();
  await expectAccessible(page);
  // There is nothing more to apply.
  await expect(page.getByRole('button', { name: 'Apply' })).toBeDisabled();
  expect(JSON.parse(daemon.run('info', 'one', '-o', 'json'))).toMatchObject({
    spec: { limits: { cpu: { quota_percent: 50 } } },
  });

  // Its last minutes, by the address.
  const now = Math.floor(Date.now() / 1000);
  await page.goto(`${new URL(page.url()).origin}/vms/one?from=${now - 240}&to=${now}`);
  await expect(page.getByRole('region', { name: 'Processor' }).getByRole('img')).toHaveAttribute(
    'aria-label',
    /now/,
  );
  await picture(page, 'metrics');
});

test('a machine that crashes is an alert until it is started again', async () => {
  await visit('Alerts');
  await expect(page.getByText('All is as it should be.')).toBeVisible();
  const { runtime } = JSON.parse(daemon.run('info', 'one-8', '-o', 'json'));
  process.kill(runtime.pid, 'SIGKILL');

  const firing = page.getByRole('table', { name: 'Firing' });
  await expect(firing.getByRole('row').filter({ hasText: 'one-8' })).toContainText('Crash');
  await expect(page.getByLabel('1 firing')).toBeVisible();
  await expectAccessible(page);
  await picture(page, 'alerts');
  daemon.run('start', 'one-8');
  await expect(page.getByRole('table', { name: 'Over' })).toContainText('one-8 has crashed');
  await expect(page.getByText('All is as it should be.')).toBeVisible();
});

test('benchmarks run and are compared', async () => {
  await visit('Benchmarks');
  for (const note of ['first', 'second']) {
    await page.getByRole('button', { name: 'Run benchmarks' }).click();
    const dialog = page.getByRole('dialog');
    for (const suite of ['Boot', 'Clone', 'Snapshot'])
      await dialog.getByRole('checkbox', { name: new RegExp(`^${suite}`) }).click();
    await dialog.getByLabel('Rounds').fill('1');
    await dialog.getByLabel('Note').fill(note);
    await expect(dialog.getByLabel('Equivalent command')).toHaveText(
      `queztl-hv benchmark run --suite disk --rounds 1 --note ${note}`,
    );
    await expectAccessible(page);
    await dialog.getByRole('button', { name: 'Run', exact: true }).click();
    const run = page.getByRole('table', { name: 'Runs' }).getByRole('row').filter({ hasText: note });
    await expect(run).toContainText('succeeded');
  }
  const figures = page.getByRole('table', { name: 'Figures' });
  await expect(figures).toContainText('random 4 KiB reads');
  await expect(figures.getByRole('row').nth(1)).toContainText(/same|better|worse/);
  await expectAccessible(page);
  await picture(page, 'benchmarks');
});

test('dark is as readable as light', async () => {
  await page.getByRole('button', { name: 'Make it dark' }).click();
  await visit('Machines');
  await expect(row('one')).toBeVisible();
  await expectAccessible(page);
  await picture(page, 'machines-dark');
  await page.getByRole('button', { name: 'Make it light' }).click();
});

test('a snapshot is restored after a question that names what is lost', async () => {
  daemon.run('exec', 'one', '--', 'touch', '/tmp/later');
  await page.goto(`${new URL(page.url()).origin}/vms/one?tab=snapshots`);
  await page.getByRole('button', { name: 'Restore before' }).click();
  await expect(page.getByRole('dialog')).toContainText('since');
  await expectAccessible(page);
  await page.getByRole('dialog').getByRole('button', { name: 'Restore' }).click();

  await page.getByRole('button', { name: 'Tasks' }).click();
  await expect(page.getByRole('listitem').filter({ hasText: 'Restore one' })).toContainText('succeeded');
  await page.getByRole('button', { name: 'Close the tasks' }).click();
  expect(daemon.run('exec', 'one', '--', 'sh', '-c', 'ls /tmp/later || echo gone')).toContain('gone');
});

test('a machine that vanishes is told', async () => {
  await page.goto(`${new URL(page.url()).origin}/vms/one-10`);
  await expect(page.getByRole('heading', { name: 'one-10' })).toBeVisible();
  daemon.run('delete', '--force', 'one-10');

  await expect(page.getByText('There is no machine one-10')).toBeVisible();
  await page.getByRole('link', { name: 'All machines' }).click();
  await expect(page.getByText('10 machines')).toBeVisible();
});

test('a machine is deleted after a question', async () => {
  await action('one-9', 'Delete…');
  await expect(page.getByRole('dialog')).toContainText('lost for good');
  await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click();
  await expect(page.getByText('9 machines')).toBeVisible();
});

test('a daemon that restarts is told, and the page goes on', async () => {
  daemon.stop();
  await expect(page.getByText('The daemon does not answer')).toBeVisible();
  await expect(row('one')).toBeVisible();
  await picture(page, 'lost');
  daemon.run('list');

  await expect(page.getByText('The daemon does not answer')).toBeHidden();
  daemon.run('pause', 'one-1');
  await expect(row('one-1')).toContainText('paused');
});

test('a session that expires while the page is open is told, and ends at the login', async ({ browser }) => {
  const made = daemon.run('token', 'create', 'short', '--scope', 'read', '--expires', '8s', '-o', 'json');
  const guest = await browser.newPage();
  await guest.goto(new URL(page.url()).origin);
  await guest.getByRole('textbox', { name: 'Token' }).fill(JSON.parse(made).secret);
  await guest.getByRole('button', { name: 'Log in' }).click();
  await expect(guest.getByRole('heading', { name: 'Machines' })).toBeVisible();

  await expect(guest.getByRole('alert')).toContainText('Your session is over');
  await expect(guest.getByRole('button', { name: 'Log in' })).toBeVisible();
  await guest.close();
});

test('a session that is ended by others is told, and ends at the login', async () => {
  const session = daemon.run('token', 'list', '-o', 'name').split('\n');
  daemon.run('token', 'delete', ...session);
  await expect(page.getByRole('alert')).toContainText('Your session is over');
  await expect(page.getByRole('button', { name: 'Log in' })).toBeVisible();
});

test('nothing was asked for that the policy refuses', () => {
  expect(refused).toEqual([]);
});
