import { describe, expect, it } from 'vitest';
import { vmOf } from '../testing/samples';
import { forest, lines, places } from './forest';

const clone = (name: string, of: string) => vmOf(name, 'running', { origin: { vm: `id-of-${of}` } });
const vms = [
  clone('web-2', 'web'),
  vmOf('web'),
  clone('web-10', 'web'),
  clone('orphan', 'gone'),
  clone('deep', 'web-2'),
];

describe('the forest', () => {
  it('has clones below what they were made from, and orphans at the top', () => {
    const shown = lines(forest(vms), new Set()).map(({ node, level }) => `${level} ${node.vm.name}`);
    expect(shown).toEqual(['1 orphan', '1 web', '2 web-2', '3 deep', '2 web-10']);
  });

  it('hides what is below a closed node', () => {
    const shown = lines(forest(vms), new Set(['id-of-web'])).map(({ node }) => node.vm.name);
    expect(shown).toEqual(['orphan', 'web']);
  });
});

describe('places', () => {
  it('are each machine’s own, and none is the host’s', () => {
    const many = Array.from({ length: 1000 }, (_, index) => vmOf(`vm-${index}`));
    const taken = new Set(places(forest(many)).map(({ at }) => at.map((side) => side.toFixed(2)).join()));
    expect(taken.size).toBe(1000);
    expect(taken.has('0.00,0.00')).toBe(false);
  });

  it('lead from a clone to what it was made from', () => {
    const all = places(forest(vms));
    const web = all.find(({ vm }) => vm.name === 'web');
    expect(all.find(({ vm }) => vm.name === 'web-10')?.from).toEqual(web?.at);
  });
});
