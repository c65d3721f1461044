/** Starting work: the daemon answers with an operation, which the task log shows from then on. */
import { notifications } from '@mantine/notifications';
import { type QueryClient, useMutation, useQueryClient } from '@tanstack/react-query';
import { failure } from '../api/client';
import { keys } from '../api/queries';
import type { Operation } from '../api/types';

/** The command of an operation that was started in this tab, also after a reload. */
export function commandOf(operation: string): string | undefined {
  return sessionStorage.getItem(keyOf(operation)) ?? undefined;
}

const keyOf = (operation: string) => `command of ${operation}`;

interface Work {
  /** What does the same. */
  command: string;
  run: () => Promise<Operation | undefined>;
}

/** Starts work and says at once if it was refused. */
export function useTask(onStarted?: () => void) {
  const cache = useQueryClient();
  return useMutation({
    mutationFn: ({ run }: Work) => run(),
    onSuccess: (operation, { command }) => {
      // What is done at once leaves no operation.
      if (operation) {
        sessionStorage.setItem(keyOf(operation.id), command);
        remember(cache, operation);
      }
      onStarted?.();
    },
    onError: (error) => refuse(error),
  });
}

/** Says that something was refused. */
export function refuse(error: unknown) {
  notifications.show({ color: 'red', title: 'Not done', message: failure(error).message, autoClose: 15_000 });
}

/** Shows the operation before the next list comes. */
function remember(cache: QueryClient, operation: Operation) {
  cache.setQueryData<Operation[]>(keys.operations, (known = []) => [
    operation,
    ...known.filter((one) => one.id !== operation.id),
  ]);
  void cache.invalidateQueries({ queryKey: keys.operations });
}
