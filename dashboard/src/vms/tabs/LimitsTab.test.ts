import { expect, test } from 'vitest';
import { limitsOf, same, wishesOf } from './LimitsTab';

const limits = {
  cpu: { pins: [], weight: 100, quota_percent: null },
  balloon_bytes: 2 ** 20,
  hotplug_bytes: 0,
  rates: {},
};

test('a form that was not touched wishes nothing', () => {
  expect(same(limitsOf(limits, wishesOf(limits)), limitsOf(limits, wishesOf(limits)))).toBe(true);
});

test('what was applied is no longer a wish, and what was typed is', () => {
  const typed = { ...wishesOf(limits), quota: 150 };
  expect(same(limitsOf(limits, typed), limitsOf(limits, wishesOf(limits)))).toBe(false);
  const applied = limitsOf(limits, typed);
  expect(same(limitsOf(applied, typed), limitsOf(applied, wishesOf(applied)))).toBe(true);
});

test('the same size in other words is no wish', () => {
  expect(
    same(limitsOf(limits, { ...wishesOf(limits), balloon: '1024K' }), limitsOf(limits, wishesOf(limits))),
  ).toBe(true);
});
