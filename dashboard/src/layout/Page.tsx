import { Alert, Group, Skeleton, Stack, Title } from '@mantine/core';
import { type ReactNode, useEffect } from 'react';
import { failure } from '../api/client';

interface Props {
  title: string;
  actions?: ReactNode;
  children: ReactNode;
}

/** A page with its heading; the browser's title follows. */
export function Page({ title, actions, children }: Props) {
  useEffect(() => {
    document.title = `${title} · Queztl`;
  }, [title]);
  return (
    <Stack gap="md">
      <Group justify="space-between">
        <Title order={1} size="h2">
          {title}
        </Title>
        <Group gap="xs">{actions}</Group>
      </Group>
      {children}
    </Stack>
  );
}

interface LoadedProps<T> {
  query: { data: T | undefined; error: Error | null };
  children: (data: T) => ReactNode;
}

/** Shows what was asked for, that it is on its way, or why it is not there. */
export function Loaded<T>({ query, children }: LoadedProps<T>) {
  if (query.data !== undefined) return children(query.data);
  if (query.error) {
    return (
      <Alert color="red" title="This cannot be shown" role="alert">
        {failure(query.error).message}
      </Alert>
    );
  }
  return <Skeleton height={160} aria-busy aria-label="Loading" role="status" />;
}
