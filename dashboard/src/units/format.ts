/** Figures as people read them. Sizes are binary, as the command line writes them. */

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** `1610612736` is `1.5 GiB`. */
export function bytes(count: number): string {
  let [value, unit] = [count, 0];
  while (Math.abs(value) >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${digits(value, unit === 0 ? 0 : 1)} ${UNITS[unit]}`;
}

/** `2048` is `2 KiB/s`. */
export function rate(bytesPerSecond: number): string {
  return `${bytes(bytesPerSecond)}/s`;
}

/** `12.34` is `12 %`. */
export function percent(value: number): string {
  return `${digits(value, Math.abs(value) < 10 ? 1 : 0)} %`;
}

/** `1234.5` is `1.2 k`. */
export function count(value: number): string {
  return value >= 1e6
    ? `${digits(value / 1e6, 1)} M`
    : value >= 1e3
      ? `${digits(value / 1e3, 1)} k`
      : digits(value, 0);
}

/** `0.00042` seconds are `420 µs`. */
export function seconds(value: number): string {
  if (value >= 3600) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  if (value >= 60) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  if (value >= 1) return `${digits(value, 1)} s`;
  return value >= 1e-3 ? `${digits(value * 1e3, 1)} ms` : `${digits(value * 1e6, 0)} µs`;
}

/** How long ago something was, at the given time. */
export function ago(at: string, now: number): string {
  return seconds(Math.max(0, Math.round((now - Date.parse(at)) / 1000)));
}

/** A time of the browser's zone. */
export function clock(at: string): string {
  return new Date(at).toLocaleString(undefined, { dateStyle: 'short', timeStyle: 'medium' });
}

/** A size as the command line takes it: `1536M`, `2G`. */
export function size(count: number): string {
  for (const [unit, factor] of [
    ['G', 2 ** 30],
    ['M', 2 ** 20],
    ['K', 2 ** 10],
  ] as const) {
    if (count > 0 && count % factor === 0) return `${count / factor}${unit}`;
  }
  return `${count}`;
}

/** Reads a size as people write it: `512M`, `2GB`, `1.5g`. Nothing for what is none. */
export function parseSize(text: string): number | undefined {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*$/i.exec(text);
  if (!match?.[1]) return undefined;
  const power = ' kmgt'.indexOf((match[2] ?? '').toLowerCase() || ' ');
  const value = Number(match[1]) * 1024 ** power;
  return Number.isSafeInteger(value) ? value : undefined;
}

function digits(value: number, most: number): string {
  const text = value.toFixed(most);
  return most > 0 ? text.replace(/\.0+$/, '') : text;
}
