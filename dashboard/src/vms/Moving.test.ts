import { expect, test } from 'vitest';
import type { Operation } from '../api/types';
import { moving } from './Moving';

const operation = (fields: Partial<Operation>) =>
  ({ kind: 'migrate', state: 'running', target: 'a', ...fields }) as Operation;

test('a machine moves while an operation moves it', () => {
  expect(moving([operation({})], { id: 'a' })).toBeDefined();
  expect(moving([operation({ kind: 'receive' })], { id: 'a' })).toBeDefined();
  for (const other of [
    operation({ target: 'b' }),
    operation({ state: 'succeeded' }),
    operation({ kind: 'clone' }),
  ])
    expect(moving([other], { id: 'a' })).toBeUndefined();
});
