/** Rates from counters: what machines use now, and a short past of it for sparklines. */
import type { VmMetrics } from '../api/types';

/** How many points a sparkline has. */
export const POINTS = 60;

/** What a machine uses. */
export interface Usage {
  /** Percent of one processor, the whole process. */
  cpu: number;
  /** Percent of one processor, each vCPU. */
  vcpus: number[];
  resident: number;
  /** Bytes a second. */
  diskRead: number;
  diskWritten: number;
  netReceived: number;
  netSent: number;
  /** Requests a second, reads and writes. */
  iops: number;
  /** Mean time of a disk request in seconds, if there were any. */
  latency: number | undefined;
  /** From a cut to its acknowledgement in seconds, where there are copies. */
  lag: number | undefined;
  /** What copies take on the wire, bytes a second. */
  copied: number | undefined;
}

/** A machine's last counters, its usage between the last two, and the past. */
export interface Track {
  last: VmMetrics;
  usage: Usage | undefined;
  past: Usage[];
}

export type Tracks = ReadonlyMap<string, Track>;

/** Goes on with new counters; machines that are gone are forgotten. */
export function follow(tracks: Tracks, metrics: VmMetrics[]): Tracks {
  return new Map(metrics.map((next) => [next.vm, followOne(tracks.get(next.vm), next)]));
}

function followOne(track: Track | undefined, next: VmMetrics): Track {
  if (!track) return { last: next, usage: undefined, past: [] };
  if (track.last.at === next.at) return track;
  // Counters begin anew when the machine's process does.
  if (next.cpu_ns < track.last.cpu_ns) return { ...track, last: next, usage: undefined };
  const usage = between(track.last, next);
  return { last: next, usage, past: [...track.past, usage].slice(-POINTS) };
}

/** What was used between two readings. */
export function between(before: VmMetrics, after: VmMetrics): Usage {
  const seconds = Math.max(1e-3, (Date.parse(after.at) - Date.parse(before.at)) / 1000);
  const processor = (ns: number) => (Math.max(0, ns) / 1e9 / seconds) * 100;
  const disk = (of: (disk: VmMetrics['disks'][number]) => number) =>
    Math.max(0, total(after.disks, of) - total(before.disks, of));
  const net = (of: (net: VmMetrics['nets'][number]) => number) =>
    Math.max(0, total(after.nets, of) - total(before.nets, of)) / seconds;
  const requests = disk((one) => one.reads + one.writes);
  const spent = disk((one) => one.read_latency.sum_ns + one.write_latency.sum_ns);
  return {
    cpu: processor(after.cpu_ns - before.cpu_ns),
    vcpus: after.vcpus.map((vcpu, index) =>
      processor(vcpu.cpu_ns - (before.vcpus[index]?.cpu_ns ?? vcpu.cpu_ns)),
    ),
    resident: after.memory.resident_bytes,
    diskRead: disk((one) => one.read_bytes) / seconds,
    diskWritten: disk((one) => one.written_bytes) / seconds,
    netReceived: net((one) => one.received_bytes),
    netSent: net((one) => one.sent_bytes),
    iops: requests / seconds,
    latency: requests > 0 ? spent / requests / 1e9 : undefined,
    lag: after.protection ? after.protection.lag_ns / 1e9 : undefined,
    copied:
      before.protection && after.protection
        ? Math.max(0, after.protection.wire_bytes - before.protection.wire_bytes) / seconds
        : undefined,
  };
}

function total<T>(list: T[], of: (item: T) => number): number {
  return list.reduce((sum, item) => sum + of(item), 0);
}
