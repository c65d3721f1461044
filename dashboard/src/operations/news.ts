import { useQuery } from '@tanstack/react-query';
import { useEffect, useRef } from 'react';
import { Failure } from '../api/client';
import { operationsQuery } from '../api/queries';
import { refuse } from './tasks';

/** Says when work that was seen running has failed. */
export function useTaskNews() {
  const { data: operations } = useQuery(operationsQuery);
  const running = useRef(new Set<string>());
  useEffect(() => {
    for (const { id, state, problem } of operations ?? []) {
      if (state === 'running') running.current.add(id);
      else if (running.current.delete(id) && state === 'failed' && problem) refuse(Failure.of(problem));
    }
  }, [operations]);
}
