/** The host and its machines in space, and the same as a table that can be read and walked. */
import { Box, Group, Paper, Text } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { lazy, Suspense, useDeferredValue, useMemo } from 'react';
import { operationsQuery, vmsQuery } from '../api/queries';
import type { Operation, Vm } from '../api/types';
import { Loaded, Page } from '../layout/Page';
import { useUsage } from '../live/usage';
import { forest } from './forest';
import { LEGEND } from './load';
import { NodeTable } from './NodeTable';
import { streams, wordsByMachine } from './streams';
import { TreeTable } from './TreeTable';

const Scene = lazy(() => import('./Scene'));

export function TreePage() {
  const query = useQuery(vmsQuery);
  return (
    <Page title="Tree">
      <Loaded query={query}>{(vms) => <Tree vms={vms} />}</Loaded>
    </Page>
  );
}

const NOTHING: Operation[] = [];

function Tree({ vms }: { vms: Vm[] }) {
  const usage = useUsage();
  // A long table is made anew between frames, not in one.
  const calm = useDeferredValue(usage);
  const { data: operations = NOTHING } = useQuery(operationsQuery);
  const roots = useMemo(() => forest(vms), [vms]);
  const flows = useMemo(() => streams(vms, usage, operations), [vms, usage, operations]);
  const words = useMemo(() => wordsByMachine(flows), [flows]);
  return (
    <>
      <Paper withBorder h={420} style={{ overflow: 'hidden' }}>
        {drawer() !== 'nobody' ? (
          <Suspense>
            <Scene roots={roots} usage={usage} streams={flows} plain={drawer() === 'processor'} />
          </Suspense>
        ) : (
          <Text p="md">This browser has no WebGL. The table below has the same content.</Text>
        )}
      </Paper>
      <Legend />
      <NodeTable vms={vms} usage={calm} streams={flows} />
      <TreeTable roots={roots} usage={calm} flows={words} />
    </>
  );
}

function Legend() {
  return (
    <Group gap="md" component="ul" p={0} m={0} style={{ listStyle: 'none' }} aria-label="Colours of load">
      {LEGEND.map(([colour, words]) => (
        <Group key={words} gap={6} component="li">
          <Box w={14} h={14} bg={colour} style={{ borderRadius: 3 }} aria-hidden />
          <Text size="sm">{words}</Text>
        </Group>
      ))}
    </Group>
  );
}

/** Who draws the scene: a GPU, the processor in its place, or nobody. */
type Drawer = 'gpu' | 'processor' | 'nobody';

let known: Drawer | undefined;

/** Asked once: a browser has only so many contexts to give. */
function drawer(): Drawer {
  known ??= findDrawer();
  return known;
}

function findDrawer(): Drawer {
  const context = document.createElement('canvas').getContext('webgl2');
  if (!context) return 'nobody';
  const info = context.getExtension('WEBGL_debug_renderer_info');
  const name = info ? String(context.getParameter(info.UNMASKED_RENDERER_WEBGL)) : '';
  return /swiftshader|llvmpipe|software/i.test(name) ? 'processor' : 'gpu';
}
