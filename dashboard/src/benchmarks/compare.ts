/** Two runs of benchmarks beside each other. */
import type { BenchmarkFigure, BenchmarkRun } from '../api/types';

export interface Row {
  suite: BenchmarkFigure['suite'];
  name: string;
  unit: string;
  before?: number;
  after?: number;
  /** How many times better the second is: above 1 is better, whichever way the figure counts. */
  better?: number;
}

/** The figures of both, in the order of the first; what only one of them has stands alone. */
export function compare(before: BenchmarkRun | undefined, after: BenchmarkRun | undefined): Row[] {
  const rows = new Map<string, Row>();
  for (const [side, run] of [
    ['before', before],
    ['after', after],
  ] as const) {
    for (const figure of run?.figures ?? []) {
      const key = `${figure.suite} ${figure.name}`;
      const row = rows.get(key) ?? { suite: figure.suite, name: figure.name, unit: figure.unit };
      row[side] = figure.median;
      if (row.before !== undefined && row.after !== undefined)
        row.better = ratio(row.before, row.after, figure.more_is_better);
      rows.set(key, row);
    }
  }
  return [...rows.values()];
}

function ratio(before: number, after: number, moreIsBetter: boolean): number | undefined {
  const value = moreIsBetter ? after / before : before / after;
  return Number.isFinite(value) ? value : undefined;
}

/** `1.25 × better`, `1.10 × worse`, `same`. */
export function words(better: number | undefined): string {
  if (better === undefined) return '–';
  if (Math.abs(better - 1) < 0.005) return 'same';
  return better > 1 ? `${better.toFixed(2)} × better` : `${(1 / better).toFixed(2)} × worse`;
}

/** Differences of less than a tenth are within what a busy host does by itself. */
export function colour(better: number | undefined): string {
  if (better === undefined || (better > 0.9 && better < 1.1)) return 'dimmed';
  return better > 1 ? 'teal' : 'red';
}

export function figure(value: number | undefined, unit: string): string {
  if (value === undefined) return '–';
  return `${value >= 1000 ? Math.round(value).toLocaleString('en') : value.toFixed(value >= 100 ? 0 : 1)} ${unit}`;
}
