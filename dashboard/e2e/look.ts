/** What tests look at: pages as people see them, and what accessibility asks of them. */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { expect, type Page } from '@playwright/test';
import type { AxeResults } from 'axe-core';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const PICTURES = new URL('../../docs/dashboard/', import.meta.url).pathname;

/** Asks axe whether anybody is shut out of the page as it is now. */
export async function expectAccessible(page: Page) {
  // By the debugger, for the page lets no other script in.
  await page.evaluate(AXE);
  // Colours on their way to others are not what people read: it may take a moment.
  await expect(async () => {
    const results = await page.evaluate(async () => {
      const { axe } = window as unknown as {
        axe: { run: (root: Document, options: object) => Promise<AxeResults> };
      };
      return axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'] });
    });
    const found = results.violations.map(
      ({ id, nodes }) =>
        `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary ?? ''}`).join('\n  ')}`,
    );
    expect(found).toEqual([]);
  }).toPass({ timeout: 30_000 });
}

/** Keeps a picture for the documentation when it is asked for: QUEZTL_PICTURES=1. */
export async function picture(page: Page, name: string) {
  if (process.env.QUEZTL_PICTURES) await page.screenshot({ path: `${PICTURES}${name}.png` });
}
