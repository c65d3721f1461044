/** One terminal, connected while it is shown. */
import '@xterm/xterm/css/xterm.css';
import './terminal.css';
import { Alert, Button, Group } from '@mantine/core';
import { FitAddon } from '@xterm/addon-fit';
import { Terminal } from '@xterm/xterm';
import { useEffect, useRef, useState } from 'react';
import type { Link, Sink, Size } from './links';

interface Props {
  /** Connects; another function is another terminal. */
  open: (size: Size, sink: Sink) => Link;
  label: string;
}

const SCROLLBACK_LINES = 10_000;
const PAUSE_MS = 1_500;

export function TerminalView({ open, label }: Props) {
  const holder = useRef<HTMLDivElement>(null);
  const [ended, setEnded] = useState<string>();
  const [attempt, setAttempt] = useState(0);

  // biome-ignore lint/correctness/useExhaustiveDependencies: each attempt connects anew.
  useEffect(() => {
    if (!holder.current) return;
    setEnded(undefined);
    const { terminal, fit } = show(holder.current);
    let timer: number | undefined;
    const link = open(sizeOf(terminal), {
      output: (bytes) => terminal.write(bytes),
      ended: (why, again) => {
        setEnded(why);
        if (again) timer = window.setTimeout(() => setAttempt((count) => count + 1), PAUSE_MS);
      },
    });
    terminal.onData(link.input);
    terminal.onResize(({ rows, cols }) => link.resize({ rows, columns: cols }));
    const observer = new ResizeObserver(() => fit.fit());
    observer.observe(holder.current);
    terminal.focus();
    return () => {
      window.clearTimeout(timer);
      observer.disconnect();
      link.close();
      terminal.dispose();
    };
  }, [open, attempt]);

  return (
    <>
      {ended && (
        <Alert color="orange" mb="xs" title="Not connected" role="status">
          <Group justify="space-between">
            {ended}
            <Button size="compact-sm" variant="default" onClick={() => setAttempt((count) => count + 1)}>
              Connect again
            </Button>
          </Group>
        </Alert>
      )}
      <section ref={holder} className="screen" aria-label={label} />
    </>
  );
}

function show(holder: HTMLElement) {
  const terminal = new Terminal({
    scrollback: SCROLLBACK_LINES,
    cursorBlink: true,
    fontSize: 13,
    fontFamily: 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace',
    theme: { background: '#101418', foreground: '#e6e8ea' },
    // What is on the screen is also there as text, for those who listen to it.
    screenReaderMode: true,
  });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  terminal.open(holder);
  fit.fit();
  return { terminal, fit };
}

function sizeOf({ rows, cols }: Terminal): Size {
  return { rows, columns: cols };
}
