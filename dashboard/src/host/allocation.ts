/** Who has what of the host: guaranteed, used, and promised beyond what there is. */
import type { Info, Vm } from '../api/types';
import type { Tracks } from '../live/rates';
import { isLive } from '../vms/actions';

export interface Share {
  name: string;
  vcpus: number;
  /** Most it may use, in percent of one processor. */
  quota: number;
  weight: number;
  /** What it gets even if all want all they may, in percent of one processor. */
  guaranteed: number;
  cpu: number;
  ram: number;
  resident: number;
}

export interface Allocation {
  shares: Share[];
  vcpus: number;
  cpu: number;
  ram: number;
  resident: number;
  /** Promised vCPUs for each processor there is. */
  cpuCommitment: number;
  /** Promised RAM for each byte there is. */
  ramCommitment: number;
}

const USUAL_WEIGHT = 100;

/** What machines that run have; the others have nothing. */
export function allocation({ host }: Info, vms: Vm[], tracks: Tracks): Allocation {
  const shares = vms.filter(isLive).map((vm) => shareOf(vm, tracks));
  guarantee(shares, host.cpus * 100);
  const sum = (of: (share: Share) => number) => shares.reduce((total, share) => total + of(share), 0);
  const [vcpus, ram] = [sum((one) => one.vcpus), sum((one) => one.ram)];
  return {
    shares: shares.sort((a, b) => b.resident - a.resident),
    vcpus,
    cpu: sum((one) => one.cpu),
    ram,
    resident: sum((one) => one.resident),
    cpuCommitment: vcpus / Math.max(1, host.cpus),
    ramCommitment: ram / Math.max(1, host.memory_bytes),
  };
}

/**
 * Divides the processors by weight among machines that all want the most they may. What one cannot use is divided among the
 * others (as the kernel's scheduler does).
 */
function guarantee(shares: Share[], all: number) {
  let [left, open] = [all, [...shares]];
  while (open.length > 0) {
    const weights = open.reduce((total, { weight }) => total + weight, 0);
    const fair = ({ weight }: Share) => (left * weight) / weights;
    const full = open.filter((share) => share.quota <= fair(share));
    for (const share of full.length > 0 ? full : open) share.guaranteed = Math.min(share.quota, fair(share));
    if (full.length === 0) return;
    left -= full.reduce((total, { quota }) => total + quota, 0);
    open = open.filter((share) => !full.includes(share));
  }
}

function shareOf(vm: Vm, tracks: Tracks): Share {
  const usage = tracks.get(vm.id)?.usage;
  const vcpus = vm.spec.vcpus ?? 1;
  const { weight, quota_percent } = vm.spec.limits?.cpu ?? {};
  return {
    name: vm.name,
    vcpus,
    quota: quota_percent ?? vcpus * 100,
    weight: weight ?? USUAL_WEIGHT,
    guaranteed: 0,
    cpu: usage?.cpu ?? 0,
    ram: vm.spec.ram_bytes ?? 0,
    resident: usage?.resident ?? 0,
  };
}
