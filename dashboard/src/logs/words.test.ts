import { expect, it } from 'vitest';
import type { LogRecord } from '../api/types';
import { fieldWords, matches } from './words';

const record: LogRecord = {
  number: 1,
  at: '2026-01-01T00:00:00Z',
  level: 'info',
  target: 'queztl::audit',
  message: '',
  fields: { caller: 'token laptop', method: 'POST', status: 202 } as unknown as LogRecord['fields'],
};

it('says what a record is about', () => {
  expect(fieldWords(record)).toBe('caller=token laptop · method=POST · status=202');
});

it('finds records by words of all that they say', () => {
  expect(matches(record, 'LAPTOP post')).toBe(true);
  expect(matches(record, 'laptop delete')).toBe(false);
  expect(matches(record, '')).toBe(true);
});
