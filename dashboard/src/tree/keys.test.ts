import { expect, it } from 'vitest';
import { vmOf } from '../testing/samples';
import { forest, lines } from './forest';
import { step } from './keys';

const vms = [vmOf('a'), vmOf('a-1', 'running', { origin: { vm: 'id-of-a' } }), vmOf('b')];
const press = (key: string, name: string, closed = new Set<string>()) => {
  const shown = lines(forest(vms), closed);
  const line = shown.find(({ node }) => node.vm.name === name);
  return line && step(key, line, shown, closed);
};

it('walks over what is shown', () => {
  expect(press('ArrowDown', 'a')).toEqual({ do: 'focus', id: 'id-of-a-1' });
  expect(press('ArrowDown', 'a', new Set(['id-of-a']))).toEqual({ do: 'focus', id: 'id-of-b' });
  expect(press('End', 'a')).toEqual({ do: 'focus', id: 'id-of-b' });
  expect(press('ArrowUp', 'a')).toBeUndefined();
});

it('opens, closes and climbs', () => {
  expect(press('ArrowLeft', 'a')).toEqual({ do: 'close', id: 'id-of-a' });
  expect(press('ArrowRight', 'a', new Set(['id-of-a']))).toEqual({ do: 'open', id: 'id-of-a' });
  expect(press('ArrowRight', 'a')).toEqual({ do: 'focus', id: 'id-of-a-1' });
  expect(press('ArrowLeft', 'a-1')).toEqual({ do: 'focus', id: 'id-of-a' });
  expect(press('ArrowRight', 'b')).toBeUndefined();
});
