/** Forgets a run. */
import { Button } from '@mantine/core';
import { useQueryClient } from '@tanstack/react-query';
import { useState } from 'react';
import { api, value } from '../api/client';
import { keys } from '../api/queries';
import type { BenchmarkRun } from '../api/types';
import { command } from '../commands/command';
import { useMay } from '../session/SessionGate';
import { clock } from '../units/format';
import { LossDialog } from '../vms/LossDialog';

export function DeleteRunButton({ run }: { run: BenchmarkRun }) {
  const cache = useQueryClient();
  const [deleting, setDeleting] = useState(false);
  if (!useMay('admin') || run.state === 'running') return null;
  const when = clock(run.started_at);
  return (
    <>
      <Button
        size="compact-xs"
        variant="default"
        aria-label={`Delete the run of ${when}`}
        onClick={() => setDeleting(true)}
      >
        Delete
      </Button>
      {deleting && (
        <LossDialog
          title={`Delete the run of ${when}?`}
          loss={`Its ${run.figures.length} figures are lost for good.`}
          confirm="Delete"
          work={{
            command: command('benchmark', 'delete', run.id),
            run: async () => {
              await value(api.DELETE('/v1/benchmarks/{run}', { params: { path: { run: run.id } } }));
              await cache.invalidateQueries({ queryKey: keys.benchmarks });
              return undefined;
            },
          }}
          onClose={() => setDeleting(false)}
        />
      )}
    </>
  );
}
