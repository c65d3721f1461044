import { describe, expect, it } from 'vitest';
import type { Operation } from '../api/types';
import { protectionOf, vmOf } from '../testing/samples';
import { backupsProblem, bufferProblem, protectCommand, registerProblem, requestOf, USUAL } from './request';
import { badgeWords, behind, placeOf, roleOf } from './words';

const wishes = { ...USUAL, backups: 'https://b:7443\nhttps://c:7443', register: 'file:/r', token: 'qz_1' };

describe('the form of a protection', () => {
  it('asks for what is usual where nothing else is said', () => {
    expect(requestOf(wishes)).toMatchObject({
      backups: [
        { to: 'https://b:7443', token: 'qz_1' },
        { to: 'https://c:7443', token: 'qz_1' },
      ],
      acks: null,
      interval_ms: null,
      buffer_bytes: 64 * 2 ** 20,
      curve: 'linear',
    });
    expect(protectCommand('web', wishes)).toBe(
      'queztl-hv protect web --to https://b:7443,https://c:7443 --to-token-file FILE --register file:/r',
    );
  });

  it('has all else in the command, too', () => {
    const all = {
      ...wishes,
      token: '',
      acks: 1,
      mode: 'best-effort' as const,
      interval: 50,
      buffer: '1M',
      threshold: 50,
      most: 0,
      curve: 'exponential' as const,
      lease: 500,
      silence: 100,
    };
    expect(protectCommand('web', all)).toBe(
      'queztl-hv protect web --to https://b:7443,https://c:7443 --register file:/r --acks 1 --mode best-effort ' +
        '--interval 50 --buffer 1M --throttle-threshold 0.5 --max-throttle 0 --curve exponential:4 --silence 100 --lease 500',
    );
    expect(requestOf({ ...all, curve: 'custom' }).curve).toBe(`custom:${USUAL.points}`);
  });

  it('says what is no address, no register and no buffer', () => {
    expect(backupsProblem('')).toContain('from 1 to 8');
    expect(backupsProblem('node-b')).toContain('https://host:port');
    expect(backupsProblem('unix:/run/b/daemon.sock')).toBeNull();
    expect(registerProblem('/r')).not.toBeNull();
    expect(registerProblem('etcd://10.0.0.1:2379,10.0.0.2:2379')).toBeNull();
    expect([bufferProblem('1K'), bufferProblem('8G'), bufferProblem('64M')].map(Boolean)).toEqual([
      true,
      true,
      false,
    ]);
  });
});

describe('protection in words', () => {
  it('is primary with copies elsewhere, backup with a copy kept here, else nothing', () => {
    const keeps = { kind: 'keep-copy', state: 'running', target: 'id-of-web' } as Operation;
    expect(roleOf(vmOf('web'), protectionOf({}), [])).toBe('primary');
    expect(roleOf(vmOf('web'), undefined, [keeps])).toBe('backup');
    expect(roleOf(vmOf('web'), undefined, [{ ...keeps, state: 'succeeded' }])).toBeUndefined();
  });

  it('has the worst copy for the lag', () => {
    const copy = { to: 'unix:/b', round_trip_ns: 0, epoch: 1 };
    const backups = [
      { ...copy, behind_ns: 2e9 },
      { ...copy, behind_ns: 7e9 },
    ];
    expect(behind(protectionOf({ backups }))).toBe(7);
    expect(badgeWords(protectionOf({ lag_ns: 4_200_000 }))).toBe('protected, 4.2 ms');
    expect(badgeWords(protectionOf({ state: 'degraded' }))).toBe('degraded');
  });

  it('calls daemons by what tells them apart', () => {
    expect(placeOf('https://node-b:7443')).toBe('node-b:7443');
    expect(placeOf('unix:/var/lib/two/daemon.sock')).toBe('two');
  });
});
