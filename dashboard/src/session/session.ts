/** Who this browser is. The session itself is a cookie that no script can read. */
import { Failure, failure, isProblem } from '../api/client';
import type { Scope } from '../api/types';

export interface Session {
  scope: Scope;
  expires_at: string | null;
}

/** What is shown to be let in: the code of `queztl-hv dashboard`, or a token. */
export type Credentials = { code: string } | { token: string };

export function currentSession(): Promise<Session> {
  return ask('GET');
}

export function logIn(credentials: Credentials): Promise<Session> {
  return ask('POST', credentials);
}

export async function logOut(): Promise<void> {
  await ask('DELETE');
}

/** The one-time code in the page's address, which is taken out of it at once. */
export function takeCode(): string | undefined {
  const code = /^#login=([0-9a-f]+)$/.exec(location.hash)?.[1];
  if (code) history.replaceState(null, '', location.pathname + location.search);
  return code;
}

async function ask<T>(method: string, body?: object): Promise<T> {
  const init: RequestInit = { method, credentials: 'same-origin' };
  if (body) {
    init.headers = { 'content-type': 'application/json' };
    init.body = JSON.stringify(body);
  }
  try {
    const response = await fetch('/session', init);
    if (response.status === 204) return undefined as T;
    const answer: unknown = await response.json();
    if (response.ok) return answer as T;
    throw isProblem(answer)
      ? Failure.of(answer)
      : new Failure('internal', `the daemon answered ${response.status}`);
  } catch (error) {
    throw failure(error);
  }
}
