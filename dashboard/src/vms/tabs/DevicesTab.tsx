/** A machine's vCPUs, disks and networks, with their counters. */
import { Stack, Table, Text, Title } from '@mantine/core';
import type { DiskMetrics, Vm } from '../../api/types';
import { useTrack } from '../../live/usage';
import { bytes, count, percent, seconds } from '../../units/format';

export default function DevicesTab({ vm }: { vm: Vm }) {
  const track = useTrack(vm.id);
  const { disks = [], nets = [] } = vm.spec;
  return (
    <Stack gap="xl">
      <DeviceTable
        title="Processors"
        none="It does not run."
        head={['vCPU', 'Now', 'Processor time', 'Waited for the host', 'Exits']}
        rows={(track?.last.vcpus ?? []).map((vcpu, index) => [
          `${index}`,
          percent(track?.usage?.vcpus[index] ?? 0),
          seconds(vcpu.cpu_ns / 1e9),
          seconds(vcpu.steal_ns / 1e9),
          vcpu.exits.map((exit) => `${exit.kind} ${count(exit.count)}`).join(', '),
        ])}
      />
      <DeviceTable
        title="Disks"
        none="It has no disks."
        head={['Disk', 'Made of', 'Read', 'Written', 'Mean read', 'Mean write', 'Errors']}
        rows={disks.map((disk, index) => {
          const counters = track?.last.disks[index];
          const origin = disk.image
            ? `overlay on ${disk.image}`
            : (disk.path ?? `empty, ${bytes(disk.size_bytes ?? 0)}`);
          return [
            `disk${index}`,
            disk.read_only ? `${origin}, read only` : origin,
            counters ? `${bytes(counters.read_bytes)}, ${count(counters.reads)} requests` : '–',
            counters ? `${bytes(counters.written_bytes)}, ${count(counters.writes)} requests` : '–',
            counters ? mean(counters.read_latency, counters.reads) : '–',
            counters ? mean(counters.write_latency, counters.writes) : '–',
            `${counters?.errors ?? 0}`,
          ];
        })}
      />
      <DeviceTable
        title="Networks"
        none="It has no network device."
        head={['Device', 'Leads to', 'Address', 'To the guest', 'From the guest', 'Dropped']}
        rows={nets.map((net, index) => {
          const counters = track?.last.nets[index];
          return [
            `net${index}`,
            net.kind === 'tap' ? `TAP ${net.tap ?? ''}` : 'the host’s network',
            net.mac ?? '–',
            bytes(counters?.received_bytes ?? 0),
            bytes(counters?.sent_bytes ?? 0),
            count((counters?.received_dropped ?? 0) + (counters?.sent_dropped ?? 0)),
          ];
        })}
      />
    </Stack>
  );
}

/** A histogram's mean time. */
function mean(latency: DiskMetrics['read_latency'], requests: number): string {
  return requests > 0 ? seconds(latency.sum_ns / requests / 1e9) : '–';
}

interface TableProps {
  title: string;
  none: string;
  head: string[];
  rows: string[][];
}

function DeviceTable({ title, none, head, rows }: TableProps) {
  return (
    <section aria-label={title}>
      <Title order={2} size="h4" mb="xs">
        {title}
      </Title>
      {rows.length === 0 ? (
        <Text c="dimmed">{none}</Text>
      ) : (
        <Table.ScrollContainer minWidth={640} scrollAreaProps={{ viewportProps: { tabIndex: 0 } }}>
          <Table data={{ head, body: rows }} aria-label={title} />
        </Table.ScrollContainer>
      )}
    </section>
  );
}
