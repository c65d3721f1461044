/** Requests to the daemon. Whatever goes wrong is a {@link Failure} with the daemon's own sentence. */
import createClient from 'openapi-fetch';
import type { paths } from './schema';
import type { Problem } from './types';

/** Why a request was not done. */
export class Failure extends Error {
  /** The daemon's code, or `unreachable` where no answer came. */
  readonly code: Problem['code'] | 'unreachable';
  readonly fields: NonNullable<Problem['fields']>;

  constructor(code: Failure['code'], detail: string, fields: Failure['fields'] = []) {
    super(detail);
    this.name = 'Failure';
    this.code = code;
    this.fields = fields;
  }

  static of(problem: Problem): Failure {
    return new Failure(problem.code, problem.detail, problem.fields);
  }

  /** Whether the browser has to log in again. */
  get endsSession(): boolean {
    return this.code === 'unauthenticated';
  }
}

/** Makes a {@link Failure} of whatever was thrown. */
export function failure(error: unknown): Failure {
  if (error instanceof Failure) return error;
  // fetch() throws a TypeError where nobody answers.
  return new Failure(
    'unreachable',
    'the daemon does not answer: is it running? `queztl-hv daemon status` tells',
  );
}

const client = createClient<paths>({
  baseUrl: '/',
  credentials: 'same-origin',
  // Looked up at each request, so that tests can put another in its place.
  fetch: (request) => fetch(request),
});

export const api = client;

/** The answer's value, or its problem as a {@link Failure}. */
export async function value<T>(
  request: Promise<{ data?: T; error?: unknown; response: Response }>,
): Promise<T> {
  const { data, error, response } = await request.catch((error: unknown) => {
    throw failure(error);
  });
  if (response.ok) return data as T;
  throw isProblem(error)
    ? Failure.of(error)
    : new Failure('internal', `the daemon answered ${response.status}`);
}

export function isProblem(value: unknown): value is Problem {
  return typeof value === 'object' && value !== null && 'code' in value && 'detail' in value;
}

/** A WebSocket of this daemon. */
export function openSocket(path: string): WebSocket {
  const socket = new WebSocket(new URL(path, location.href.replace(/^http/, 'ws')));
  socket.binaryType = 'arraybuffer';
  return socket;
}
