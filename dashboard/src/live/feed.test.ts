// @vitest-environment happy-dom
import { QueryClient } from '@tanstack/react-query';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { keys } from '../api/queries';
import type { Event } from '../api/types';
import { type FeedState, followEvents, joined, touchedBy } from './feed';

const event = (sequence: number, fields: object = { event: 'daemon-started' }): Event =>
  ({ sequence, at: '2026-01-01T00:00:00Z', message: 'm', ...fields }) as Event;

/** Stands for the browser's WebSocket; tests speak for the daemon. */
class FakeSocket {
  static all: FakeSocket[] = [];
  onopen?: () => void;
  onclose?: () => void;
  onmessage?: (message: { data: string }) => void;
  closed = false;
  constructor(readonly url: URL) {
    FakeSocket.all.push(this);
  }
  close() {
    this.closed = true;
    this.onclose?.();
  }
}

describe('the list of events', () => {
  it('has each event once', () => {
    const known = [event(1), event(2)];
    expect(joined(known, event(2))).toBe(known);
    expect(joined(known, event(3))).toHaveLength(3);
    expect(joined(undefined, event(1))).toBeUndefined();
  });
});

describe('an event', () => {
  it('makes what it is about untrue', () => {
    expect(touchedBy(event(1, { event: 'vm-changed', vm: 'a', name: 'a', state: 'running' }))).toEqual([
      keys.vms,
    ]);
    expect(touchedBy(event(1, { event: 'operation-ended', operation: 'o' }))).toEqual([
      keys.operations,
      keys.benchmarks,
    ]);
    expect(touchedBy(event(1, { event: 'alert-firing', alert: 'x', rule: 'steal' }))).toEqual([keys.alerts]);
    expect(touchedBy(event(1, { event: 'warning' }))).toEqual([]);
  });
});

describe('following', () => {
  beforeEach(() => {
    FakeSocket.all = [];
    vi.useFakeTimers();
    vi.stubGlobal('WebSocket', FakeSocket);
  });
  afterEach(() => {
    vi.useRealTimers();
    vi.unstubAllGlobals();
  });

  const start = (loggedIn: boolean) => {
    const states: FeedState[] = [];
    const cache = new QueryClient();
    const stop = followEvents({
      cache,
      onState: (state) => states.push(state),
      stillLoggedIn: async () => loggedIn,
    });
    return { states, cache, stop };
  };

  it('goes on after the last event when the daemon is back', async () => {
    const { states, stop } = start(true);
    const first = FakeSocket.all[0] as FakeSocket;
    first.onopen?.();
    first.onmessage?.({ data: JSON.stringify(event(41)) });
    first.onclose?.();
    await vi.advanceTimersByTimeAsync(1_100);

    FakeSocket.all[1]?.onopen?.();

    expect(FakeSocket.all[1]?.url.search).toBe('?after=41');
    expect(states).toEqual(['connecting', 'live', 'lost', 'live']);
    stop();
  });

  it('ends with the session', async () => {
    const { states } = start(false);
    FakeSocket.all[0]?.onclose?.();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(FakeSocket.all).toHaveLength(1);
    expect(states.at(-1)).toBe('ended');
  });

  it('stops when it is told to', async () => {
    const { stop } = start(true);
    stop();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(FakeSocket.all).toHaveLength(1);
  });
});
