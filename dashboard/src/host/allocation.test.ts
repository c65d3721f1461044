import { expect, it } from 'vitest';
import type { Info } from '../api/types';
import { vmOf } from '../testing/samples';
import { allocation } from './allocation';

const info: Info = {
  version: '1',
  pid: 1,
  accelerators: [],
  host: { name: 'h', kernel: '6', cpus: 2, memory_bytes: 2 ** 29, memory_available_bytes: 2 ** 28 },
};

it('counts what machines that run are promised', () => {
  const four = vmOf('big', 'running', { spec: { ...vmOf('big').spec, vcpus: 4, ram_bytes: 2 ** 29 } });
  const all = allocation(info, [four, vmOf('small'), vmOf('off', 'stopped')], new Map());

  expect(all.shares.map((share) => share.name).sort()).toEqual(['big', 'small']);
  expect(all.cpuCommitment).toBe(2.5);
  expect(all.ramCommitment).toBe(1.5);
});

it('takes the limit, or all vCPUs, for the most that a machine may use', () => {
  const limited = vmOf('a', 'running', {
    spec: { ...vmOf('a').spec, vcpus: 2, limits: { cpu: { weight: 50, quota_percent: 80 } } },
  });
  const [a, b] = ['a', 'b'].map((name) =>
    allocation(info, [limited, vmOf('b')], new Map()).shares.find((share) => share.name === name),
  );
  expect([a?.quota, a?.weight, b?.quota, b?.weight]).toEqual([80, 50, 100, 100]);
});

it('guarantees by weight what is left when all want all they may', () => {
  const vm = (name: string, vcpus: number, cpu: object) =>
    vmOf(name, 'running', { spec: { ...vmOf(name).spec, vcpus, limits: { cpu } } });
  const vms = [vm('capped', 4, { quota_percent: 20 }), vm('heavy', 2, { weight: 200 }), vm('light', 2, {})];
  const { shares } = allocation(info, vms, new Map());
  const of = (name: string) => shares.find((share) => share.name === name)?.guaranteed;

  expect([of('capped'), of('heavy'), of('light')]).toEqual([20, 120, 60]);
});
