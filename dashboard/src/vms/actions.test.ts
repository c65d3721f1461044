import { describe, expect, it } from 'vitest';
import { vmOf } from '../testing/samples';
import { ACTIONS, possible } from './actions';

const ids = (state: Parameters<typeof vmOf>[1]) => possible(vmOf('a', state)).map((action) => action.id);

describe('actions', () => {
  it('are those that the state allows', () => {
    expect(ids('running')).toEqual(['stop', 'pause', 'reboot', 'kill', 'delete']);
    expect(ids('paused')).toEqual(['resume', 'kill', 'delete']);
    expect(ids('stopped')).toEqual(['start', 'delete']);
  });

  it('ask only where something is lost, and name it', () => {
    const asked = ACTIONS.filter((action) => action.loses);
    expect(asked.map((action) => action.id)).toEqual(['kill', 'delete']);
    const vm = vmOf('db', 'stopped', {
      spec: { ...vmOf('db').spec, disks: [{ size_bytes: 1 }, { path: '/dev/sdb' }] },
    });
    expect(asked[1]?.loses?.(vm)).toBe('db, its snapshots and its disk are lost for good.');
  });

  it('force the deletion of a machine that runs, as the command does', () => {
    const remove = ACTIONS.find((action) => action.id === 'delete');
    expect(remove?.command(vmOf('a', 'running'))).toBe('queztl-hv delete a --force');
    expect(remove?.command(vmOf('a', 'stopped'))).toBe('queztl-hv delete a');
  });
});
