import { describe, expect, it } from 'vitest';
import { bytes, count, parseSize, percent, seconds, size } from './format';

describe('figures', () => {
  it('are written with a fitting unit', () => {
    expect(bytes(0)).toBe('0 B');
    expect(bytes(1_610_612_736)).toBe('1.5 GiB');
    expect(bytes(2048)).toBe('2 KiB');
    expect(percent(3.14)).toBe('3.1 %');
    expect(percent(187.6)).toBe('188 %');
    expect(count(1234)).toBe('1.2 k');
    expect(seconds(0.00042)).toBe('420 µs');
    expect(seconds(61)).toBe('1 min 1 s');
  });
});

describe('sizes', () => {
  it('are read as people write them', () => {
    expect(parseSize('512M')).toBe(512 * 2 ** 20);
    expect(parseSize('2GB')).toBe(2 ** 31);
    expect(parseSize('1.5 GiB')).toBe(1.5 * 2 ** 30);
    expect(parseSize('4096')).toBe(4096);
  });

  it('that are none are refused', () => {
    for (const text of ['', 'much', '1X', '-1G', '1G2']) expect(parseSize(text)).toBeUndefined();
  });

  it('are written so that the command line reads the same', () => {
    for (const bytes of [2 ** 30, 768 * 2 ** 20, 4096, 17]) expect(parseSize(size(bytes))).toBe(bytes);
  });
});
