import { expect, test } from 'vitest';
import { alertOf } from '../testing/samples';
import { colour, firing, title } from './words';

test('an alert is called by its rule and what it is about', () => {
  expect(title(alertOf('vm-crash'))).toBe('Crash');
  expect(title(alertOf('disk-latency', { subject: 'disk0' }))).toBe('Slow disk: disk0');
});

test('what fires is sorted by how bad it is, and what is over is left out', () => {
  const alerts = [
    alertOf('anomaly', { severity: 'info' }),
    alertOf('vm-crash', { severity: 'critical' }),
    alertOf('host-disk', { severity: 'critical', state: 'resolved' }),
    alertOf('steal', { severity: 'warning' }),
  ];
  expect(firing(alerts).map((alert) => alert.rule)).toEqual(['vm-crash', 'steal', 'anomaly']);
});

test('what is over has no colour', () => {
  expect(colour(alertOf('vm-crash', { severity: 'critical' }))).toBe('red');
  expect(colour(alertOf('vm-crash', { severity: 'critical', state: 'resolved' }))).toBe('gray');
});
