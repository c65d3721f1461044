import { defineConfig } from '@playwright/test';

/** One daemon with real machines; tests go on from each other's, so one after the other. */
export default defineConfig({
  testDir: 'e2e',
  workers: 1,
  fullyParallel: false,
  // Guests boot on a CPU in software, and hosts of tests are busy.
  timeout: 180_000,
  expect: { timeout: 30_000 },
  reporter: [['list']],
  use: {
    // What is not there after so long will not come.
    actionTimeout: 20_000,
    viewport: { width: 1280, height: 860 },
    launchOptions: {
      executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
      args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader'],
    },
    trace: 'retain-on-failure',
  },
});
