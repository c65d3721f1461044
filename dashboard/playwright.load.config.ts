import { defineConfig } from '@playwright/test';
import usual from './playwright.config';

/** Measurements, not tests: what many machines and many pages cost. `scripts/dashboard.sh load` runs them. */
export default defineConfig(usual, {
  testDir: 'load',
  timeout: 900_000,
  use: { ...usual.use, trace: 'off' },
});
