/** Values of the API for tests: whole ones, of which a test says only what it is about. */
import type { Alert, BenchmarkFigure, BenchmarkRun, Protection, Vm, VmMetrics, VmState } from '../api/types';

export function vmOf(name: string, state: VmState = 'running', fields: Partial<Vm> = {}): Vm {
  return {
    id: `id-of-${name}`,
    name,
    state,
    created_at: '2026-01-01T00:00:00Z',
    spec: {
      kernel: null,
      initrd: [],
      cmdline: '',
      vcpus: 1,
      ram_bytes: 2 ** 28,
      memory_hotplug_bytes: 0,
      huge_pages: 'none',
      disks: [],
      nets: [],
      accel: 'auto',
      limits: { cpu: { pins: [] }, balloon_bytes: 0, hotplug_bytes: 0, rates: {} },
      on_crash: 'stay',
      autostart: false,
      labels: {},
    },
    ...fields,
  };
}

export function metricsOf(name: string, fields: Partial<VmMetrics> = {}): VmMetrics {
  const latency = { buckets: [], sum_ns: 0 };
  return {
    vm: name,
    name,
    at: '2026-01-01T00:00:00Z',
    cpu_ns: 0,
    vcpus: [{ cpu_ns: 0, steal_ns: 0, halted_ns: 0, exits: [] }],
    memory: {
      ram_bytes: 2 ** 28,
      resident_bytes: 2 ** 26,
      private_bytes: 0,
      pss_bytes: 0,
      balloon_target_bytes: 0,
      balloon_bytes: 0,
      hotplug_bytes: 0,
    },
    disks: [
      {
        device: 'disk0',
        reads: 0,
        writes: 0,
        flushes: 0,
        discards: 0,
        read_bytes: 0,
        written_bytes: 0,
        errors: 0,
        in_flight: 0,
        read_latency: latency,
        write_latency: latency,
      },
    ],
    nets: [],
    ...fields,
  };
}

export function protectionOf(fields: Partial<Protection>): Protection {
  return {
    state: 'protected',
    mode: 'pause',
    acks: 1,
    term: 1,
    epoch: 1,
    released: 1,
    interval_ns: 30e6,
    pause_ns: 6e5,
    lag_ns: 4e6,
    epoch_bytes: 0,
    data_bytes: 0,
    wire_bytes: 0,
    waiting_bytes: 0,
    buffer_bytes: 2 ** 26,
    dropped_frames: 0,
    throttle_percent: 0,
    stalled: false,
    wanted: 1,
    backups: [],
    ...fields,
  };
}

export function alertOf(rule: Alert['rule'], fields: Partial<Alert> = {}): Alert {
  return {
    id: `id-of-${rule}`,
    rule,
    severity: 'warning',
    state: 'firing',
    subject: '',
    message: 'it is not as it should be',
    value: 1,
    threshold: 1,
    started_at: '2026-01-01T00:00:00Z',
    ...fields,
  };
}

export function runOf(id: string, figures: Omit<BenchmarkFigure, 'values'>[]): BenchmarkRun {
  return {
    id,
    operation: `operation-of-${id}`,
    state: 'succeeded',
    note: '',
    started_at: '2026-01-01T00:00:00Z',
    ended_at: '2026-01-01T00:01:00Z',
    version: '0.1.0',
    host: 'host',
    kernel: '6.1',
    cpus: 2,
    machines: 0,
    figures: figures.map((figure) => ({ ...figure, values: [figure.median] })),
  };
}
