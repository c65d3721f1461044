/** The nodes of the scene as a table: this host, and the daemons that something flows to or from. */
import { Table } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { infoQuery } from '../api/queries';
import type { Vm } from '../api/types';
import type { Tracks } from '../live/rates';
import { bytes, percent } from '../units/format';
import { daemons, type Stream } from './streams';

interface Props {
  vms: Vm[];
  usage: Tracks;
  streams: Stream[];
}

export function NodeTable({ vms, usage, streams }: Props) {
  const { data: info } = useQuery(infoQuery);
  const used = [...usage.values()].map((track) => track.usage).filter((one) => one !== undefined);
  const cpu = used.reduce((sum, one) => sum + one.cpu, 0);
  const resident = used.reduce((sum, one) => sum + one.resident, 0);
  const running = vms.filter((vm) => vm.runtime).length;
  const host = [
    info ? `${info.host.name} (this host)` : 'this host',
    `${running} of ${vms.length} run`,
    info ? `${percent(cpu)} of ${percent(info.host.cpus * 100)}` : percent(cpu),
    info ? `${bytes(resident)} of ${bytes(info.host.memory_bytes)}` : bytes(resident),
  ];
  const others = daemons(streams).map(({ name, streams }) => [
    name,
    streams.map((stream) => `${stream.name}: ${stream.words.replace(`${name} `, '')}`).join('; '),
    '–',
    '–',
  ]);
  return (
    <Table.ScrollContainer minWidth={640} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
      <Table
        aria-label="Nodes"
        verticalSpacing={4}
        data={{
          caption: 'Nodes: this host, and the daemons that copies and machines go to',
          head: ['Node', 'Machines', 'Processor', 'Memory'],
          body: [host, ...others],
        }}
      />
    </Table.ScrollContainer>
  );
}
