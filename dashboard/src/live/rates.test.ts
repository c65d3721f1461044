import { describe, expect, it } from 'vitest';
import { metricsOf } from '../testing/samples';
import { between, follow, POINTS } from './rates';

const second = (n: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, n)).toISOString();

describe('rates', () => {
  it('are differences over time', () => {
    const before = metricsOf('a', { at: second(0), cpu_ns: 1e9 });
    const after = metricsOf('a', { at: second(2), cpu_ns: 2e9 });
    Object.assign(before.disks[0] ?? {}, { reads: 10, read_bytes: 4096 });
    Object.assign(after.disks[0] ?? {}, {
      reads: 30,
      read_bytes: 4096 * 21,
      read_latency: { buckets: [], sum_ns: 40e6 },
    });

    const usage = between(before, after);

    expect(usage.cpu).toBeCloseTo(50);
    expect(usage.iops).toBeCloseTo(10);
    expect(usage.diskRead).toBeCloseTo(40_960);
    expect(usage.latency).toBeCloseTo(0.002);
  });

  it('start anew when the counters do', () => {
    let tracks = follow(new Map(), [metricsOf('a', { at: second(0), cpu_ns: 5e9 })]);
    tracks = follow(tracks, [metricsOf('a', { at: second(1), cpu_ns: 6e9 })]);
    tracks = follow(tracks, [metricsOf('a', { at: second(2), cpu_ns: 1e9 })]);
    expect(tracks.get('a')?.usage).toBeUndefined();
    expect(tracks.get('a')?.past).toHaveLength(1);
  });

  it('keep a bounded past, and only of machines that run', () => {
    let tracks = follow(new Map(), []);
    for (let n = 0; n < POINTS + 5; n++) {
      tracks = follow(tracks, [metricsOf('a', { at: second(n), cpu_ns: n })]);
    }
    expect(tracks.get('a')?.past).toHaveLength(POINTS);
    expect(follow(tracks, []).size).toBe(0);
  });
});
