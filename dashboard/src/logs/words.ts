/** Records of the daemon's log and audit in words. */
import type { LogRecord } from '../api/types';

export const COLOURS: Record<LogRecord['level'], string> = { info: 'gray', warn: 'orange', error: 'red' };

/** `caller=uid 0 · method=POST`: what a record is about. */
export function fieldWords({ fields }: LogRecord): string {
  return Object.entries(fields as Record<string, unknown>)
    .map(([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`)
    .join(' · ');
}

/** Looks for each word in all that a record says. */
export function matches(record: LogRecord, find: string): boolean {
  const text = `${record.level} ${record.target} ${record.message} ${fieldWords(record)}`.toLowerCase();
  return find
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}
