import { expect, test } from 'vitest';
import { addressProblem } from './MigrateDialog';

test('an address leads to a daemon', () => {
  expect(['https://host:7443', 'unix:/run/q/daemon.sock'].map(addressProblem)).toEqual([null, null]);
  for (const wrong of ['', 'host', 'http://host:1', 'https://host', 'https://host:1/path', 'unix:relative'])
    expect(addressProblem(wrong)).toContain('https://host:port');
});
