// @vitest-environment happy-dom
import { afterEach, expect, it, vi } from 'vitest';
import { currentSession, takeCode } from './session';

afterEach(() => {
  vi.unstubAllGlobals();
});

const answer = (status: number, body: object) =>
  vi.stubGlobal('fetch', vi.fn().mockResolvedValue(new Response(JSON.stringify(body), { status })));

it('takes the code out of the address, once', () => {
  history.replaceState(null, '', '/vms/a?tab=log#login=0123abcd');
  expect(takeCode()).toBe('0123abcd');
  expect(location.hash).toBe('');
  expect(location.search).toBe('?tab=log');
  expect(takeCode()).toBeUndefined();
});

it('tells a session that is over from a daemon that is away', async () => {
  answer(401, { code: 'unauthenticated', detail: 'the token has expired' });
  await expect(currentSession()).rejects.toMatchObject({
    endsSession: true,
    message: 'the token has expired',
  });

  vi.stubGlobal('fetch', vi.fn().mockRejectedValue(new TypeError('failed to fetch')));
  await expect(currentSession()).rejects.toMatchObject({ endsSession: false, code: 'unreachable' });
});
