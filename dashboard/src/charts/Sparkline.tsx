/** A curve without axes, for a cell of a table. What it shows is said beside it in figures. */

interface Props {
  values: number[];
  /** How many there can be: a short past fills only the right end. */
  points: number;
  /** What the top stands for at least. */
  atLeast?: number;
}

const [WIDTH, HEIGHT] = [72, 20];

export function Sparkline({ values, points, atLeast = 1 }: Props) {
  return (
    <svg
      width={WIDTH}
      height={HEIGHT}
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      aria-hidden
      style={{ flex: 'none' }}
    >
      <path
        d={curve(values, points, atLeast)}
        fill="none"
        stroke="var(--mantine-primary-color-filled)"
        strokeWidth={1.5}
      />
    </svg>
  );
}

/** The path of a curve whose newest value is at the right end. */
export function curve(values: number[], points: number, atLeast: number): string {
  if (values.length < 2) return '';
  const top = Math.max(atLeast, ...values);
  const step = WIDTH / (points - 1);
  const start = WIDTH - (values.length - 1) * step;
  const at = (value: number, index: number) =>
    `${(start + index * step).toFixed(1)} ${(HEIGHT - 1 - (value / top) * (HEIGHT - 2)).toFixed(1)}`;
  return `M${values.map(at).join('L')}`;
}
