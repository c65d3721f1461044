/** How many frames a second the tree has with 1,000 machines, each with other figures every two seconds. */
import { expect, type Page, type Route, test } from '@playwright/test';
import { Daemon } from '../e2e/daemon';
import { metricsOf, vmOf } from '../src/testing/samples';

const MACHINES = Number(process.env.TREE_MACHINES ?? 1000);
const SECONDS = 10;

let daemon: Daemon;

test.beforeAll(() => {
  daemon = new Daemon();
});

test.afterAll(() => {
  daemon.end();
});

test('the tree of many machines', async ({ page }) => {
  await answerForMachines(page);
  await page.goto(daemon.login());
  await page.getByRole('navigation').getByRole('link', { name: 'Tree' }).click();
  await expect(page.getByRole('treegrid')).toBeVisible();
  await expect(page.locator('canvas')).toBeVisible();
  await page.waitForTimeout(4_000);

  const still = await frames(page);
  const turning = await framesWhileTurning(page);
  const renderer = await rendererOf(page);

  const words = ({ rate, longest }: Frames) =>
    `${rate.toFixed(0)} frames/s, the longest ${longest.toFixed(0)} ms`;
  console.log(
    `${MACHINES} machines, drawn by ${renderer}: at rest ${words(still)}; turning ${words(turning)}`,
  );
});

/** The page's own requests, answered with machines that no host here could run; all else is the daemon's to answer. */
async function answerForMachines(page: Page) {
  const runtime = { pid: 1, accelerator: 'soft', started_at: '2026-01-01T00:00:00Z', restarts: 0 };
  const vms = Array.from({ length: MACHINES }, (_, number) =>
    vmOf(`vm-${number}`, 'running', {
      runtime,
      origin: number % 10 === 0 ? null : { vm: `id-of-vm-${number - (number % 10)}`, snapshot: null },
    }),
  );
  let asked = 0;
  const metrics = () => {
    asked += 1;
    return vms.map((vm, number) =>
      metricsOf(vm.name, {
        vm: vm.id,
        at: new Date().toISOString(),
        cpu_ns: asked * 2e9 * ((number % 10) / 10),
      }),
    );
  };
  const answer = (items: () => unknown[]) => (route: Route) =>
    route.fulfill({ json: { items: items(), next: null } });
  await page.route(
    /\/v1\/vms$/,
    answer(() => vms),
  );
  await page.route(/\/v1\/metrics$/, answer(metrics));
}

interface Frames {
  rate: number;
  /** Between two frames, milliseconds. */
  longest: number;
}

/** Frames that the browser had time for. */
function frames(page: Page): Promise<Frames> {
  return page.evaluate(
    (seconds) =>
      new Promise<Frames>((resolve) => {
        const start = performance.now();
        let [count, last, longest] = [0, start, 0];
        const step = (now: number) => {
          count += 1;
          longest = Math.max(longest, now - last);
          last = now;
          if (now - start < seconds * 1000) requestAnimationFrame(step);
          else resolve({ rate: (count / (now - start)) * 1000, longest });
        };
        requestAnimationFrame(step);
      }),
    SECONDS,
  );
}

/** The same while the scene is turned, so that each frame is drawn anew. */
async function framesWhileTurning(page: Page): Promise<Frames> {
  const box = await page.locator('canvas').boundingBox();
  if (!box) throw new Error('there is no scene');
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  let over = false;
  await page.mouse.move(x, y);
  await page.mouse.down();
  const turn = (async () => {
    for (let step = 0; !over; step += 1) await page.mouse.move(x + 200 * Math.sin(step / 30), y);
  })();
  const measured = await frames(page);
  over = true;
  await turn;
  await page.mouse.up();
  return measured;
}

function rendererOf(page: Page): Promise<string> {
  return page.evaluate(() => {
    const context = document.createElement('canvas').getContext('webgl2');
    const info = context?.getExtension('WEBGL_debug_renderer_info');
    return context && info ? String(context.getParameter(info.UNMASKED_RENDERER_WEBGL)) : 'unknown';
  });
}
