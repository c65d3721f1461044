/** The time range of charts, as the page's address has it: the last while, or from one time to another. */

export const SPANS = { '15m': 15 * 60, '1h': 3600, '6h': 6 * 3600, '24h': 24 * 3600 } as const;
export type Span = keyof typeof SPANS;
export const DEFAULT_SPAN: Span = '15m';

/** `range` is the last while up to now; `from` and `to` (seconds since 1970) stand still. */
export interface Range {
  range?: Span;
  from?: number;
  to?: number;
}

/** What an address says, as far as it makes sense. */
export function readRange(search: Record<string, unknown>): Range {
  const [from, to] = [Number(search.from), Number(search.to)];
  if (from > 0 && to > from) return { from: Math.floor(from), to: Math.ceil(to) };
  const range = String(search.range);
  return isSpan(range) ? { range } : {};
}

/** The range in seconds since 1970. */
export function bounds(range: Range, now: number): [number, number] {
  if (range.from !== undefined && range.to !== undefined) return [range.from, range.to];
  const to = Math.floor(now / 1000);
  return [to - SPANS[range.range ?? DEFAULT_SPAN], to];
}

export function isSpan(text: string): text is Span {
  return Object.hasOwn(SPANS, text);
}
