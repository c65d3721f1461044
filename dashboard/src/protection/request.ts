/** What the form of a protection says, as the request and as the command that does the same. */
import type { ProtectRequest } from '../api/types';
import { command } from '../commands/command';
import { parseSize, size } from '../units/format';
import { addressProblem } from '../vms/MigrateDialog';

export interface Wishes {
  /** One address in each line. */
  backups: string;
  token: string;
  authority: string;
  register: string;
  /** Nothing for all. */
  acks: number | '';
  mode: 'pause' | 'best-effort';
  /** Milliseconds; nothing for what a copy costs. */
  interval: number | '';
  buffer: string;
  threshold: number;
  most: number;
  curve: 'linear' | 'exponential' | 'custom';
  steepness: number;
  /** Lines of fill and throttle. */
  points: string;
  stripes: number;
  lease: number;
  silence: number;
}

export const USUAL: Wishes = {
  backups: '',
  token: '',
  authority: '',
  register: '',
  acks: '',
  mode: 'pause',
  interval: '',
  buffer: '64M',
  threshold: 60,
  most: 90,
  curve: 'linear',
  steepness: 4,
  points: '0 0\n0.5 0.2\n1 0.9',
  stripes: 2,
  lease: 1000,
  silence: 200,
};

export function addresses(text: string): string[] {
  return text.split(/[\s,]+/).filter(Boolean);
}

export function isRemote(backups: string): boolean {
  return addresses(backups).some((to) => to.startsWith('https://'));
}

export function backupsProblem(text: string): string | null {
  const all = addresses(text);
  if (all.length === 0 || all.length > 8) return 'from 1 to 8 daemons, each in a line of its own';
  const wrong = all.find(addressProblem);
  return wrong ? `${wrong}: ${addressProblem(wrong)}` : null;
}

export function registerProblem(text: string): string | null {
  return /^file:\/\S+$/.test(text) || /^etcd:\/\/\S+:\d+$/.test(text)
    ? null
    : 'file:/directory that all of them see, or etcd://host:port,host:port';
}

export function bufferProblem(text: string): string | null {
  const bytes = parseSize(text) ?? 0;
  return bytes >= 2 ** 16 && bytes <= 2 ** 32 ? null : 'a size from 64K to 4G';
}

export function requestOf(wishes: Wishes): ProtectRequest {
  const { backups, token, authority, register, acks, mode, interval, buffer } = wishes;
  return {
    backups: addresses(backups).map((to) => ({ to, token: token || null, authority: authority || null })),
    register,
    acks: acks === '' ? null : acks,
    mode,
    interval_ms: interval === '' ? null : interval,
    buffer_bytes: parseSize(buffer) ?? 0,
    throttle_threshold: wishes.threshold,
    max_throttle: wishes.most,
    curve: curveOf(wishes),
    stripes: wishes.stripes,
    lease_ms: wishes.lease,
    silence_ms: wishes.silence,
  };
}

function curveOf({ curve, steepness, points }: Wishes): string {
  if (curve === 'exponential') return `exponential:${steepness}`;
  return curve === 'custom' ? `custom:${points}` : 'linear';
}

/** What is usual is left out. */
export function protectCommand(vm: string, wishes: Wishes): string {
  const { acks, mode, interval, buffer, threshold, most, curve, steepness, stripes, lease, silence } = wishes;
  const words: (string | number)[] = ['--to', addresses(wishes.backups).join(',') || 'https://host:port'];
  if (wishes.token) words.push('--to-token-file', 'FILE');
  if (wishes.authority) words.push('--to-ca', 'FILE');
  words.push('--register', wishes.register || 'file:/directory');
  if (acks !== '') words.push('--acks', acks);
  if (mode !== 'pause') words.push('--mode', mode);
  if (interval !== '') words.push('--interval', interval);
  const bytes = parseSize(buffer);
  if (bytes && bytes !== parseSize(USUAL.buffer)) words.push('--buffer', size(bytes));
  if (threshold !== USUAL.threshold) words.push('--throttle-threshold', threshold / 100);
  if (most !== USUAL.most) words.push('--max-throttle', most / 100);
  if (curve === 'exponential') words.push('--curve', `exponential:${steepness}`);
  if (curve === 'custom') words.push('--curve', 'custom:FILE');
  if (stripes !== USUAL.stripes) words.push('--stripes', stripes);
  if (silence !== USUAL.silence) words.push('--silence', silence);
  if (lease !== USUAL.lease) words.push('--lease', lease);
  return command('protect', vm, ...words);
}
