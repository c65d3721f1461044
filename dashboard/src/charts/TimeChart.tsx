/** One chart over time. Charts with the same group show one cursor; dragging over a chart chooses a range. */
import 'uplot/dist/uPlot.min.css';
import { Paper, Text, useComputedColorScheme } from '@mantine/core';
import { useElementSize } from '@mantine/hooks';
import { useEffect, useRef } from 'react';
import uPlot from 'uplot';

export interface Series {
  label: string;
  values: (number | null)[];
}

interface Props {
  title: string;
  /** Seconds since 1970, rising. */
  times: number[];
  series: Series[];
  show: (value: number) => string;
  /** What the top stands for at least. */
  atLeast: number;
  /** Values are bytes: the axis has steps of powers of two. */
  binary: boolean;
  /** The range to show, also where there are no values. */
  from: number;
  to: number;
  group: string;
  onSelect: (from: number, to: number) => void;
}

const HEIGHT = 190;
/** Told apart also by those who see no red or green (Okabe and Ito). */
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9'];

export function TimeChart({ title, times, series, show, atLeast, binary, from, to, group, onSelect }: Props) {
  const { ref: measured, width } = useElementSize<HTMLDivElement>();
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(undefined);
  const dark = useComputedColorScheme('light') === 'dark';
  const labels = series.map(({ label }) => label).join('\n');
  // What the chart asks for while it lives, and what it says, as they are now.
  const now = useRef({ from, to, show, onSelect });
  now.current = { from, to, show, onSelect };

  useEffect(() => {
    if (!holder.current || width === 0) return;
    const options = chartOptions({
      width,
      dark,
      group,
      atLeast,
      binary,
      labels: labels.split('\n'),
      range: () => [now.current.from, now.current.to],
      show: (value) => now.current.show(value),
      onSelect: (from, to) => now.current.onSelect(from, to),
    });
    plot.current = new uPlot(options, [[], ...labels.split('\n').map(() => [])], holder.current);
    return () => plot.current?.destroy();
  }, [width, dark, group, labels, atLeast, binary]);

  // biome-ignore lint/correctness/useExhaustiveDependencies: a new chart needs its data too, and a new range a new look.
  useEffect(() => {
    plot.current?.setData([times, ...series.map(({ values }) => values)]);
  }, [times, series, from, to, width, dark]);

  const latest = series.map(({ label, values }) => `${label} ${show(values.at(-1) ?? 0)}`).join(', ');
  return (
    <Paper withBorder p="xs" component="section" aria-label={title}>
      <Text fw={600} size="sm">
        {title}
      </Text>
      <div ref={measured}>
        <div
          ref={holder}
          role="img"
          aria-label={`${title}: ${times.length ? `now ${latest}` : 'no values yet'}`}
        />
      </div>
    </Paper>
  );
}

const POWERS = Array.from({ length: 50 }, (_, power) => 2 ** power);

interface Wishes {
  width: number;
  dark: boolean;
  group: string;
  atLeast: number;
  binary: boolean;
  labels: string[];
  range: () => [number, number];
  show: (value: number) => string;
  onSelect: (from: number, to: number) => void;
}

function chartOptions({
  width,
  dark,
  group,
  atLeast,
  binary,
  labels,
  range,
  show,
  onSelect,
}: Wishes): uPlot.Options {
  const ink = dark ? '#c1c5ca' : '#495057';
  const grid = { stroke: dark ? '#ffffff18' : '#00000014', width: 1 };
  const value = (_: uPlot, number: number | null) => (number == null ? '–' : show(number));
  return {
    width,
    height: HEIGHT,
    cursor: { sync: { key: group, setSeries: false }, drag: { x: true, y: false, setScale: false } },
    select: { show: true, left: 0, top: 0, width: 0, height: 0 },
    scales: { x: { range }, y: { range: (_, __, most) => [0, Math.max((most ?? 0) * 1.1, atLeast)] } },
    axes: [
      { stroke: ink, grid },
      {
        stroke: ink,
        grid,
        size: 76,
        ...(binary && { incrs: POWERS }),
        values: (_, ticks) => ticks.map(show),
      },
    ],
    series: [
      { value: (_, time) => (time == null ? '–' : new Date(time * 1000).toLocaleTimeString()) },
      ...labels.map((label, index) => ({
        label,
        stroke: COLOURS[index % COLOURS.length],
        width: 1.5,
        points: { show: false },
        value,
      })),
    ],
    hooks: {
      setSelect: [
        (plot) => {
          if (plot.select.width < 4) return;
          onSelect(
            plot.posToVal(plot.select.left, 'x'),
            plot.posToVal(plot.select.left + plot.select.width, 'x'),
          );
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        },
      ],
    },
  };
}
