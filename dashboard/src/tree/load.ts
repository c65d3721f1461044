/** Load as a colour: from calm to hot, in steps that can also be told apart by their lightness. */
import type { Vm } from '../api/types';
import type { Usage } from '../live/rates';

const STEPS = ['#2b6f77', '#4d9078', '#a8a84f', '#e0913a', '#d9442b'];
const OFF = '#6b7280';
const CRASHED = '#a61e4d';

/** From 0 to 1: what a machine uses of its vCPUs. */
export function load(vm: Vm, usage: Usage | undefined): number {
  return usage ? Math.min(1, usage.cpu / ((vm.spec.vcpus ?? 1) * 100)) : 0;
}

export function colourOf(vm: Vm, usage: Usage | undefined): string {
  if (vm.state === 'crashed') return CRASHED;
  if (!vm.runtime) return OFF;
  return STEPS[Math.min(STEPS.length - 1, Math.floor(load(vm, usage) * STEPS.length))] ?? OFF;
}

/** Words for the legend. */
export const LEGEND: [colour: string, words: string][] = [
  [OFF, 'off'],
  ...STEPS.map((colour, index): [string, string] => [
    colour,
    `up to ${((index + 1) / STEPS.length) * 100} %`,
  ]),
  [CRASHED, 'crashed'],
];
