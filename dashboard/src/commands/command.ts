/** The command that does what a button does, so that whoever clicks can also script. */
import type { CloneRequest, CreateVm, Limits } from '../api/types';
import { size } from '../units/format';

const PROGRAM = 'queztl-hv';

/** A command line, its words quoted for a shell where they need it. */
export function command(...words: (string | number | false | undefined)[]): string {
  const given = words.filter((word) => word !== undefined && word !== false);
  return [PROGRAM, ...given.map((word) => quote(String(word)))].join(' ');
}

/** `a b` is `'a b'`; what a shell leaves alone stays. */
export function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

export function spawnCommand({ name, spec, start }: CreateVm): string {
  const disks = spec?.disks ?? [];
  const words: (string | number)[] = [];
  if (spec?.vcpus && spec.vcpus !== 1) words.push('--vcpus', spec.vcpus);
  if (spec?.ram_bytes) words.push('--ram', size(spec.ram_bytes));
  for (const disk of disks) {
    const from = disk.image ? `image=${disk.image}` : (disk.path ?? '');
    const parts = [from, disk.size_bytes ? `size=${size(disk.size_bytes)}` : '', disk.read_only ? 'ro' : ''];
    words.push('--disk', parts.filter(Boolean).join(','));
  }
  for (const net of spec?.nets ?? [])
    words.push('--net', net.kind === 'tap' ? `tap=${net.tap ?? ''}` : 'user');
  for (const [key, text] of Object.entries(spec?.labels ?? {})) words.push('--label', `${key}=${text}`);
  return command(start ? 'spawn' : 'create', name, ...words);
}

export function cloneCommand(vm: string, { count, name, snapshot }: CloneRequest): string {
  return command(
    'clone',
    vm,
    '--count',
    count ?? 1,
    ...(snapshot ? ['--snapshot', snapshot] : []),
    ...(name ? ['--name', name] : []),
  );
}

export function limitsCommand(vm: string, limits: Limits): string {
  const words: string[] = [];
  const cpu = limits.cpu ?? {};
  if (cpu.weight) words.push('--cpu-weight', String(cpu.weight));
  words.push('--cpu-quota', cpu.quota_percent ? String(cpu.quota_percent) : 'none');
  words.push('--balloon', size(limits.balloon_bytes ?? 0));
  if (limits.hotplug_bytes) words.push('--memory', size(limits.hotplug_bytes));
  return command('limits', vm, ...words);
}
