import { expect, it } from 'vitest';
import type { Operation } from '../api/types';
import { done, progressWords, title } from './words';

const operation = (fields: Partial<Operation>): Operation => ({
  id: 'o',
  kind: 'clone',
  state: 'running',
  target: 'id-1',
  created_at: '2026-01-01T00:00:00Z',
  cancellable: true,
  ...fields,
});

it('calls machines by their names', () => {
  expect(title(operation({}), new Map([['id-1', 'web-1']]))).toBe('Clone web-1');
  expect(title(operation({ target: 'gone' }), new Map())).toBe('Clone gone');
});

it('tells progress where it is known', () => {
  const clones = operation({ progress: { done: 3, total: 10, unit: 'machines' } });
  expect(done(clones)).toBe(30);
  expect(progressWords(clones)).toBe('3 of 10 machines');
  expect(progressWords(operation({ progress: { done: 2 ** 20, total: 2 ** 30, unit: 'bytes' } }))).toBe(
    '1 MiB of 1 GiB',
  );
  expect(done(operation({ progress: { done: 0, total: 0, unit: 'bytes' } }))).toBeUndefined();
});
