import { describe, expect, it } from 'vitest';
import { cloneCommand, command, limitsCommand, quote, spawnCommand } from './command';

describe('equivalent commands', () => {
  it('quote what a shell would take apart', () => {
    expect(quote('web-1')).toBe('web-1');
    expect(quote("it's $HOME")).toBe("'it'\\''s $HOME'");
    expect(command('snapshot', 'a', '--description', 'before work')).toBe(
      "queztl-hv snapshot a --description 'before work'",
    );
  });

  it('leave out what is usual', () => {
    expect(spawnCommand({ name: 'a', spec: { vcpus: 1, ram_bytes: 2 ** 28 }, start: true })).toBe(
      'queztl-hv spawn a --ram 256M',
    );
  });

  it('name disks, networks and labels', () => {
    const spec = {
      vcpus: 2,
      ram_bytes: 2 ** 31,
      disks: [{ image: 'debian', size_bytes: 20 * 2 ** 30 }],
      nets: [{ kind: 'user' as const }],
      labels: { tier: 'db' },
    };
    expect(spawnCommand({ name: 'db', spec, start: false })).toBe(
      'queztl-hv create db --vcpus 2 --ram 2G --disk image=debian,size=20G --net user --label tier=db',
    );
  });

  it('tell a clone of a snapshot from one of the running machine', () => {
    expect(cloneCommand('a', { count: 10 })).toBe('queztl-hv clone a --count 10');
    expect(cloneCommand('a', { count: 1, snapshot: 's', name: 'b' })).toBe(
      'queztl-hv clone a --count 1 --snapshot s --name b',
    );
  });

  it('say that a limit is taken away', () => {
    expect(limitsCommand('a', { cpu: { weight: 200 }, balloon_bytes: 0 })).toBe(
      'queztl-hv limits a --cpu-weight 200 --cpu-quota none --balloon 0',
    );
  });
});
