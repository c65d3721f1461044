import { Button, Group, SegmentedControl } from '@mantine/core';
import { DEFAULT_SPAN, isSpan, type Range, SPANS } from './range';

interface Props {
  range: Range;
  onChange: (range: Range) => void;
}

/** Chooses the last while; a range that was dragged stands still until it is left. */
export function RangeChoice({ range, onChange }: Props) {
  if (range.from !== undefined && range.to !== undefined) {
    const show = (time: number) => new Date(time * 1000).toLocaleTimeString();
    return (
      <Group gap="xs">
        {show(range.from)} – {show(range.to)}
        <Button size="compact-sm" variant="default" onClick={() => onChange({})}>
          Back to now
        </Button>
      </Group>
    );
  }
  return (
    <SegmentedControl
      aria-label="Time range"
      size="xs"
      data={Object.keys(SPANS)}
      value={range.range ?? DEFAULT_SPAN}
      onChange={(span) => onChange({ range: isSpan(span) ? span : undefined })}
    />
  );
}
