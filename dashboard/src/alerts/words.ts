/** Alerts in words and colours. */
import type { Alert } from '../api/types';

const RULES: Record<Alert['rule'], string> = {
  'vm-crash': 'Crash',
  'host-memory': 'Memory of the host',
  'host-disk': 'Space of the host',
  'host-cpu': 'Processors of the host',
  'disk-latency': 'Slow disk',
  steal: 'Waiting for processors',
  'replication-lag': 'Backup is behind',
  'refused-access': 'Refused access',
  anomaly: 'Unusual',
};

const COLOURS: Record<Alert['severity'], string> = { critical: 'red', warning: 'orange', info: 'blue' };

const ORDER: Alert['severity'][] = ['critical', 'warning', 'info'];

/** `Slow disk: disk0`. */
export function title({ rule, subject }: Pick<Alert, 'rule' | 'subject'>): string {
  return subject ? `${RULES[rule]}: ${subject}` : RULES[rule];
}

export function colour(alert: Pick<Alert, 'severity' | 'state'>): string {
  return alert.state === 'firing' ? COLOURS[alert.severity] : 'gray';
}

/** What fires, the worst first. */
export function firing(alerts: Alert[]): Alert[] {
  const rank = (alert: Alert) => ORDER.indexOf(alert.severity);
  return alerts.filter((alert) => alert.state === 'firing').sort((a, b) => rank(a) - rank(b));
}
