/** A machine's figures: now, and their history with linked cursors. */
import { Group, SimpleGrid, Stack, Text } from '@mantine/core';
import { keepPreviousData, useQuery } from '@tanstack/react-query';
import { useNavigate, useSearch } from '@tanstack/react-router';
import { useMemo } from 'react';
import { api, value } from '../../api/client';
import type { Sample, Vm } from '../../api/types';
import { RangeChoice } from '../../charts/RangeChoice';
import { bounds, type Range } from '../../charts/range';
import { type Series, TimeChart } from '../../charts/TimeChart';
import { Loaded } from '../../layout/Page';
import { useTrack } from '../../live/usage';
import { bytes, count, percent, rate, seconds } from '../../units/format';
import { useNow } from '../../units/useNow';

/** The daemon takes a sample so often. */
const INTERVAL_MS = 10_000;

interface Chart {
  title: string;
  show: (value: number) => string;
  /** What the top stands for at least, so that noise looks like noise. */
  atLeast: number;
  /** In bytes. */
  binary?: boolean;
  lines: [label: string, of: (sample: Sample) => number | null | undefined][];
}

const CHARTS: Chart[] = [
  {
    title: 'Memory',
    show: bytes,
    atLeast: 2 ** 24,
    binary: true,
    lines: [
      ['held by the host', (one) => one.resident_bytes],
      ['given up to the balloon', (one) => one.balloon_bytes],
      ['free, as the guest tells', (one) => one.guest_available_bytes],
    ],
  },
  {
    title: 'Disk throughput',
    show: rate,
    atLeast: 2 ** 12,
    binary: true,
    lines: [
      ['read', (one) => one.disk_read_bytes_per_second],
      ['written', (one) => one.disk_written_bytes_per_second],
    ],
  },
  {
    title: 'Disk requests a second',
    show: count,
    atLeast: 10,
    lines: [
      ['reads', (one) => one.disk_reads_per_second],
      ['writes', (one) => one.disk_writes_per_second],
    ],
  },
  {
    title: 'Disk latency',
    show: seconds,
    atLeast: 0.0001,
    lines: [['mean of all requests', (one) => one.disk_latency_seconds]],
  },
  {
    title: 'Network',
    show: rate,
    atLeast: 2 ** 12,
    binary: true,
    lines: [
      ['to the guest', (one) => one.net_received_bytes_per_second],
      ['from the guest', (one) => one.net_sent_bytes_per_second],
    ],
  },
];

/** One line for each vCPU, and one for what was wished and not got. */
function processorChart(vcpus: number): Chart {
  const each = Array.from({ length: vcpus }, (_, index) => [
    `vCPU ${index}`,
    (one: Sample) => one.vcpu_percent[index],
  ]) as Chart['lines'];
  return {
    title: 'Processor',
    show: percent,
    atLeast: 10,
    lines: [
      ['whole process', (one) => one.cpu_percent],
      ...each,
      ['waited for the host', (one) => one.steal_percent],
    ],
  };
}

export default function MetricsTab({ vm }: { vm: Vm }) {
  const search = useSearch({ from: '/vms/$vm' });
  const navigate = useNavigate({ from: '/vms/$vm' });
  const now = useNow(INTERVAL_MS);
  const [from, to] = bounds(search, now);
  const choose = (range: Range) =>
    navigate({ search: ({ range: _range, from: _from, to: _to, ...rest }) => ({ ...rest, ...range }) });
  const history = useQuery({
    queryKey: ['history', vm.id, from, to],
    queryFn: async () => (await value(api.GET('/v1/vms/{vm}/history', historyOf(vm.id, from, to)))).items,
    placeholderData: keepPreviousData,
    gcTime: INTERVAL_MS,
  });
  const charts = useMemo(() => [processorChart(vm.spec.vcpus ?? 1), ...CHARTS], [vm.spec.vcpus]);
  return (
    <Stack>
      <Group justify="space-between">
        <Now vm={vm} />
        <RangeChoice range={search} onChange={choose} />
      </Group>
      <Loaded query={history}>
        {(samples) => (
          <SimpleGrid cols={{ base: 1, lg: 2 }}>
            {charts.map((chart) => (
              <History
                key={chart.title}
                chart={chart}
                samples={samples}
                from={from}
                to={to}
                onSelect={(from, to) => choose({ from: Math.floor(from), to: Math.ceil(to) })}
              />
            ))}
          </SimpleGrid>
        )}
      </Loaded>
    </Stack>
  );
}

function historyOf(vm: string, from: number, to: number) {
  const time = (seconds: number) => new Date(seconds * 1000).toISOString();
  return { params: { path: { vm }, query: { from: time(from), to: time(to) } } };
}

function Now({ vm }: { vm: Vm }) {
  const usage = useTrack(vm.id)?.usage;
  if (!usage) return <Text c="dimmed">{vm.runtime ? 'Measuring…' : 'It does not run.'}</Text>;
  const figures = [
    ['Processor', percent(usage.cpu)],
    ['Memory', bytes(usage.resident)],
    ['Disks', `${rate(usage.diskRead + usage.diskWritten)}, ${count(usage.iops)} requests/s`],
    ['Latency', usage.latency === undefined ? '–' : seconds(usage.latency)],
    ['Network', rate(usage.netReceived + usage.netSent)],
  ] as const;
  return (
    <Group gap="lg" component="section" aria-label="Now">
      {figures.map(([label, figure]) => (
        <div key={label}>
          <Text size="xs" c="dimmed">
            {label}
          </Text>
          <Text fw={600} style={{ fontVariantNumeric: 'tabular-nums' }} data-figure={label}>
            {figure}
          </Text>
        </div>
      ))}
    </Group>
  );
}

interface HistoryProps {
  chart: Chart;
  samples: Sample[];
  from: number;
  to: number;
  onSelect: (from: number, to: number) => void;
}

function History({ chart, samples, ...range }: HistoryProps) {
  const [times, series] = useMemo(() => {
    const times = samples.map(({ at }) => Date.parse(at) / 1000);
    const series: Series[] = chart.lines.map(([label, of]) => ({
      label,
      values: samples.map((sample) => of(sample) ?? null),
    }));
    return [times, series];
  }, [chart, samples]);
  return (
    <TimeChart
      title={chart.title}
      show={chart.show}
      atLeast={chart.atLeast}
      binary={chart.binary ?? false}
      times={times}
      series={series}
      group="vm"
      {...range}
    />
  );
}
